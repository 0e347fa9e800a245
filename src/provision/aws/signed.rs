//! Signed calls of services whose SDK crates are not built in. They are sent through the SDK's runtime, with the same
//! retries, deadlines and HTTP client as all other calls.

use std::time::SystemTime;

use aws_config::SdkConfig;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_runtime::retries::classifiers::AwsErrorCodeClassifier;
use aws_sdk_sqs::config::http::{HttpRequest, HttpResponse};
use aws_sdk_sqs::error::{ErrorMetadata, SdkError};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime::client::orchestrator::operation::Operation;
use aws_smithy_runtime::client::retries::classifiers::{HttpStatusCodeClassifier, TransientErrorClassifier};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::OrchestratorError;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::retry::RetryConfig;
use serde_json::Value;

use crate::provision::partition::Partition;

pub(super) type SignedError = SdkError<ErrorMetadata, HttpResponse>;

pub(super) struct Signed {
    sdk: SdkConfig,
}

/// A `POST` to the endpoint of a service.
pub(super) struct Call {
    /// Name of the service in signatures and host names: `ec2`.
    pub service: &'static str,
    /// Environment variable with the endpoint of this service.
    pub endpoint_variable: &'static str,
    pub scope: Scope,
    pub operation: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

/// The area that one endpoint of a service covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// One in every region.
    Region,
    /// One in every partition of AWS, which also says for which region a call is signed: IAM.
    Partition,
    /// That of AWS Budgets, which some partitions have.
    Budgets,
    /// That of AWS Free Tier, which the commercial partition has.
    FreePlan,
    /// That of the region which every account of the partition has.
    Home,
}

impl Call {
    /// A call in the Query protocol, to a service with an endpoint in every region.
    pub(super) fn query(
        service: &'static str,
        endpoint_variable: &'static str,
        operation: &'static str,
        body: String,
    ) -> Call {
        let headers = vec![("content-type", "application/x-www-form-urlencoded; charset=utf-8".to_owned())];
        Call { service, endpoint_variable, scope: Scope::Region, operation, headers, body }
    }
}

impl Signed {
    pub(super) fn new(sdk: SdkConfig) -> Signed {
        Signed { sdk }
    }

    /// Sends a call and returns the body of its answer.
    pub(super) async fn call(&self, call: Call) -> Result<String, SignedError> {
        let url = self.url(&call);
        let request = self.sign(&url, &call).await.map_err(SdkError::construction_failure)?;
        self.send(call.service, call.operation, &url, request).await
    }

    /// Sends a `GET` that needs no signature, and returns the body of its answer.
    pub(super) async fn get(&self, service: &'static str, url: &str) -> Result<String, SignedError> {
        let request = http::Request::get(format!("{}/", url.trim_end_matches('/'))).body(SdkBody::empty());
        let request = request.map_err(SdkError::construction_failure)?;
        let request = HttpRequest::try_from(request).map_err(SdkError::construction_failure)?;
        self.send(service, "Get", url, request).await
    }

    async fn send(
        &self,
        service: &'static str,
        name: &'static str,
        url: &str,
        request: HttpRequest,
    ) -> Result<String, SignedError> {
        let http_client = self.sdk.http_client().ok_or_else(|| SdkError::construction_failure("no HTTP client"))?;
        let mut operation = Operation::builder()
            .service_name(service)
            .operation_name(name)
            .http_client(http_client)
            .endpoint_url(url)
            .no_auth()
            .standard_retry(&self.sdk.retry_config().cloned().unwrap_or_else(RetryConfig::standard))
            .retry_classifier(TransientErrorClassifier::<ErrorMetadata>::new())
            .retry_classifier(HttpStatusCodeClassifier::default())
            .retry_classifier(AwsErrorCodeClassifier::<ErrorMetadata>::new());
        if let Some(timeouts) = self.sdk.timeout_config() {
            operation = operation.timeout_config(timeouts.clone());
        }
        let operation = operation.serializer(|request: Request| Ok(request.0)).deserializer(answer).build();
        operation.invoke(Request(request)).await
    }

    /// The endpoint: that of this service if one is set, else that of all services, else AWS's own.
    fn url(&self, call: &Call) -> String {
        let endpoint = std::env::var(call.endpoint_variable).ok().filter(|url| !url.is_empty());
        let endpoint = endpoint.or_else(|| self.sdk.endpoint_url().map(str::to_owned));
        endpoint.unwrap_or_else(|| endpoint_of(call.service, call.scope, &self.region()))
    }

    fn region(&self) -> String {
        self.sdk.region().map(ToString::to_string).unwrap_or_default()
    }

    async fn sign(&self, url: &str, call: &Call) -> Result<HttpRequest, BoxError> {
        let provider = self.sdk.credentials_provider().ok_or("no source of credentials")?;
        let identity = provider.provide_credentials().await?.into();
        let region = match call.scope {
            Scope::Region => self.region(),
            Scope::Partition | Scope::Home => Partition::of(&self.region()).iam_region.to_owned(),
            Scope::FreePlan if Partition::of(&self.region()).name != "aws" => {
                return Err("this partition has no free plan".into());
            }
            Scope::FreePlan => "us-east-1".to_owned(),
            Scope::Budgets => {
                let budgets = Partition::of(&self.region()).budgets();
                budgets.ok_or("this partition has no AWS Budgets")?.region.to_owned()
            }
        };
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&region)
            .name(call.service)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()?
            .into();
        let url = format!("{}/", url.trim_end_matches('/'));
        let headers = call.headers.iter().map(|(name, value)| (*name, value.as_str()));
        let body = SignableBody::Bytes(call.body.as_bytes());
        let (signature, _) =
            sign(SignableRequest::new("POST", &url, headers.clone(), body)?, &parameters)?.into_parts();
        let mut request = http::Request::post(&url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let mut request = request.body(SdkBody::from(call.body.as_str()))?;
        signature.apply_to_request_http1x(&mut request);
        Ok(HttpRequest::try_from(request)?)
    }
}

/// The address that AWS gives a service.
fn endpoint_of(service: &str, scope: Scope, region: &str) -> String {
    let partition = Partition::of(region);
    match scope {
        Scope::Region => format!("https://{service}.{region}.{}", partition.suffix),
        Scope::Partition => format!("https://{}", partition.iam_host()),
        Scope::FreePlan => "https://freetier.us-east-1.api.aws".to_owned(),
        Scope::Budgets => {
            format!("https://{}", partition.budgets().map_or("budgets.amazonaws.com", |budgets| budgets.host))
        }
        Scope::Home => format!("https://{service}.{}.{}", partition.iam_region, partition.suffix),
    }
}

#[derive(Debug)]
struct Request(HttpRequest);

fn answer(response: &HttpResponse) -> Result<String, OrchestratorError<ErrorMetadata>> {
    let body = String::from_utf8_lossy(response.body().bytes().unwrap_or_default()).into_owned();
    if response.status().is_success() {
        return Ok(body);
    }
    let (code, message) = error_details(&body);
    let metadata = ErrorMetadata::builder().code(code).message(message).build();
    Err(OrchestratorError::operation(metadata))
}

/// Code and message of an error response, in XML or JSON.
fn error_details(body: &str) -> (String, String) {
    if let Ok(document) = roxmltree::Document::parse(body) {
        let text = |name| {
            let node = document.descendants().find(|node| node.has_tag_name(name));
            node.and_then(|node| node.text()).unwrap_or_default().to_owned()
        };
        return (text("Code"), text("Message"));
    }
    let json: Value = serde_json::from_str(body).unwrap_or_default();
    let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
    let code = text("__type");
    let message = Some(text("message")).filter(|text| !text.is_empty()).unwrap_or_else(|| text("Message"));
    (code.rsplit('#').next().unwrap_or_default().to_owned(), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_responses_in_xml_and_json_are_parsed() {
        let xml = "<?xml version=\"1.0\"?><Response><Errors><Error><Code>InvalidGroup.NotFound</Code><Message>no such group</Message></Error></Errors></Response>";
        assert_eq!(error_details(xml), ("InvalidGroup.NotFound".to_owned(), "no such group".to_owned()));
        let json = r#"{"__type":"com.amazon#ResourceNotFoundException","message":"none"}"#;
        assert_eq!(error_details(json), ("ResourceNotFoundException".to_owned(), "none".to_owned()));
        assert_eq!(error_details("gateway down"), (String::new(), String::new()));
    }

    #[test]
    fn endpoint_of_a_service_is_in_its_partition() {
        let ec2 = |region| endpoint_of("ec2", Scope::Region, region);
        assert_eq!(ec2("eu-central-1"), "https://ec2.eu-central-1.amazonaws.com");
        assert_eq!(ec2("cn-north-1"), "https://ec2.cn-north-1.amazonaws.com.cn");
        let iam = endpoint_of("iam", Scope::Partition, "us-gov-east-1");
        assert_eq!(iam, "https://iam.us-gov.amazonaws.com");
        let budgets = endpoint_of("budgets", Scope::Budgets, "cn-north-1");
        assert_eq!(budgets, "https://budgets.amazonaws.com.cn");
        assert_eq!(endpoint_of("ec2", Scope::Home, "ap-east-1"), "https://ec2.us-east-1.amazonaws.com");
    }
}

//! How an image becomes a request and an answer becomes predictions, for each API.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_DISPOSITION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::failure::{Failure, Reason, detail_of, printable};
use super::images::{Content, Image};
use super::target::{Api, BaseUrl};
use crate::protocol::{Status, TimingsMs};

/// Maximum `wait` of one request. Proxies often close a silent request after 60 s.
const MAX_WAIT_PER_REQUEST: Duration = Duration::from_secs(30);
/// Separates the parts of a form. It is long enough not to occur in an image.
const BOUNDARY: &str = "imgcls-loadgen-7MA4YWxkTrZu0gWq4k3Vd9pXb2Lc8sJf";

/// Everything except the unreserved characters of RFC 3986, which are allowed in a path and in `filename*`.
const NOT_UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How images are posted in one API to one server.
#[derive(Debug, Clone)]
pub(super) struct Dialect {
    pub api: Api,
    uri: Uri,
    host: HeaderValue,
    /// Headers that the user gave.
    headers: HeaderMap,
    /// Sent with every request.
    pub authorization: Option<HeaderValue>,
}

/// An image, ready to be sent any number of times.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub uri: Uri,
    pub headers: HeaderMap,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    Whole(Bytes),
    /// Read when it is sent, between the two halves of its form.
    OnDisk {
        head: Bytes,
        path: PathBuf,
        tail: Bytes,
    },
}

/// The final answer for an image.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    /// The best first; at least one.
    pub predictions: Vec<Predicted<'a>>,
    pub timings: Option<TimingsMs>,
}

/// One prediction. The legacy system returns labels only.
#[derive(Debug, Deserialize)]
pub(super) struct Predicted<'a> {
    #[serde(default)]
    pub class_index: Option<u32>,
    #[serde(borrow)]
    pub label: Cow<'a, str>,
    #[serde(default)]
    pub score: Option<f32>,
}

impl Dialect {
    pub(super) fn new(
        api: Api,
        url: &BaseUrl,
        timeout: Duration,
        headers: &[(HeaderName, HeaderValue)],
    ) -> anyhow::Result<Self> {
        let path_and_query = match api {
            Api::V1 if url.is_server() => {
                format!("/v1/classify?wait={}", timeout.min(MAX_WAIT_PER_REQUEST).as_secs().max(1))
            }
            _ => url.path_and_query.clone(),
        };
        Ok(Dialect {
            api,
            uri: path_and_query.parse()?,
            host: HeaderValue::from_str(&url.authority)?,
            headers: headers.iter().cloned().collect(),
            authorization: None,
        })
    }

    pub(super) fn prepare(&self, image: &Image) -> Prepared {
        let mut headers = self.common_headers();
        let (head, tail) = match self.api {
            Api::V1 => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(image.content_type));
                headers.insert(CONTENT_DISPOSITION, attachment(&image.name));
                (Bytes::new(), Bytes::new())
            }
            Api::Legacy => {
                let form = format!("multipart/form-data; boundary={BOUNDARY}");
                headers.insert(CONTENT_TYPE, HeaderValue::from_str(&form).expect("ASCII; this is a bug"));
                form_around(image)
            }
        };
        let body = match &image.content {
            Content::InMemory(image) => Body::Whole(joined(head, image, &tail)),
            Content::OnDisk(path) => Body::OnDisk { head, path: path.clone(), tail },
        };
        Prepared { uri: self.uri.clone(), headers: self.with_given(headers), body }
    }

    /// Headers of a poll for a job.
    pub(super) fn poll_headers(&self) -> HeaderMap {
        self.with_given(self.common_headers())
    }

    /// A header that the user gave replaces ours.
    fn with_given(&self, mut headers: HeaderMap) -> HeaderMap {
        for name in self.headers.keys() {
            headers.remove(name);
        }
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        headers
    }

    /// The URI to poll for the result, or `None` if the answer is final.
    pub(super) fn poll_uri(&self, status: StatusCode, location: Option<&str>, body: &[u8]) -> Option<Uri> {
        let is_job_state = status == StatusCode::OK;
        if self.api != Api::V1 || !(is_job_state || status == StatusCode::ACCEPTED) {
            return None;
        }
        let text: V1Answer = serde_json::from_slice(body).ok()?;
        if is_job_state && (text.final_status().is_some() || text.status.is_none()) {
            return None;
        }
        let path = match (location, text.id) {
            (Some(location), _) if location.starts_with('/') => location.to_owned(),
            (_, Some(id)) => format!("/v1/jobs/{}", utf8_percent_encode(&id, NOT_UNRESERVED)),
            _ => return None,
        };
        let separator = if path.contains('?') { '&' } else { '?' };
        format!("{path}{separator}wait=20").parse().ok()
    }

    /// Reads the predictions of a final answer.
    pub(super) fn read<'a>(&self, status: StatusCode, body: &'a [u8]) -> Result<Answer<'a>, Failure> {
        if status != StatusCode::OK {
            return Err(Failure { reason: Reason::Status(status.as_u16()), detail: detail_of(body) });
        }
        match self.api {
            Api::V1 => read_v1(body),
            Api::Legacy => read_label(body),
        }
    }

    fn common_headers(&self) -> HeaderMap {
        let accept = match self.api {
            Api::V1 => "application/json",
            Api::Legacy => "text/plain, */*",
        };
        let agent = concat!("imgcls-loadgen/", env!("CARGO_PKG_VERSION"));
        let mut headers = HeaderMap::from_iter([
            (HOST, self.host.clone()),
            (USER_AGENT, HeaderValue::from_static(agent)),
            (ACCEPT, HeaderValue::from_static(accept)),
        ]);
        headers.extend(self.authorization.clone().map(|key| (AUTHORIZATION, key)));
        headers
    }
}

impl Prepared {
    /// The bytes to send. They are shared, not copied, unless the image is on disk.
    pub(super) async fn body(&self) -> io::Result<Bytes> {
        match &self.body {
            Body::Whole(bytes) => Ok(bytes.clone()),
            Body::OnDisk { head, path, tail } => Ok(joined(head.clone(), &tokio::fs::read(path).await?.into(), tail)),
        }
    }
}

/// The members of a result object or job state that are used; all others are ignored.
#[derive(Debug, Deserialize)]
struct V1Answer<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    status: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    predictions: Vec<Predicted<'a>>,
    #[serde(default)]
    timings_ms: Option<TimingsMs>,
    #[serde(borrow, default)]
    error: Option<V1Error<'a>>,
}

#[derive(Debug, Deserialize)]
struct V1Error<'a> {
    #[serde(borrow)]
    code: Cow<'a, str>,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
}

impl V1Answer<'_> {
    fn final_status(&self) -> Option<Status> {
        let status = self.status.as_deref()?;
        [Status::Succeeded, Status::Failed, Status::Expired]
            .into_iter()
            .find(|final_status| final_status.as_str() == status)
    }
}

fn read_v1(body: &[u8]) -> Result<Answer<'_>, Failure> {
    let unreadable = || Failure { reason: Reason::Unreadable, detail: detail_of(body) };
    let answer: V1Answer = serde_json::from_slice(body).map_err(|_| unreadable())?;
    match answer.final_status() {
        Some(Status::Succeeded) if !answer.predictions.is_empty() => {
            Ok(Answer { predictions: answer.predictions, timings: answer.timings_ms })
        }
        Some(final_status @ (Status::Failed | Status::Expired)) => {
            let (code, detail) = match answer.error {
                Some(error) => (printable(&error.code), Some(printable(&error.message))),
                None => (final_status.as_str().to_owned(), None),
            };
            Err(Failure { reason: Reason::Job(code), detail })
        }
        _ => Err(unreadable()),
    }
}

/// Reads a label as the legacy web tier passes it on: `" bathtub)\n"` stands for bathtub.
fn read_label(body: &[u8]) -> Result<Answer<'_>, Failure> {
    let unreadable = || Failure { reason: Reason::Unreadable, detail: detail_of(body) };
    let text = std::str::from_utf8(body).map_err(|_| unreadable())?.trim();
    let label = match text.strip_suffix(')') {
        Some(rest) if !rest.contains('(') => rest.trim_end(),
        _ => text,
    };
    if label.is_empty() {
        return Err(unreadable());
    }
    let only = Predicted { class_index: None, label: Cow::Borrowed(label), score: None };
    Ok(Answer { predictions: vec![only], timings: None })
}

/// A header that holds any file name (RFC 6266 with the encoding of RFC 8187).
fn attachment(name: &str) -> HeaderValue {
    let value = format!("attachment; filename*=UTF-8''{}", utf8_percent_encode(name, NOT_UNRESERVED));
    HeaderValue::from_str(&value).expect("percent-encoded text is ASCII; this is a bug")
}

/// The form before and after the image. The file name is escaped as browsers do it.
fn form_around(image: &Image) -> (Bytes, Bytes) {
    let name = image.name.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A");
    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"myfile\"; filename=\"{name}\"\r\nContent-Type: {}\r\n\r\n",
        image.content_type
    );
    (Bytes::from(head), Bytes::from(format!("\r\n--{BOUNDARY}--\r\n")))
}

fn joined(head: Bytes, image: &Bytes, tail: &Bytes) -> Bytes {
    if head.is_empty() && tail.is_empty() {
        return image.clone();
    }
    let mut whole = BytesMut::from(head);
    whole.extend_from_slice(image);
    whole.extend_from_slice(tail);
    whole.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect(api: Api, url: &str) -> Dialect {
        Dialect::new(api, &url.parse().expect("a URL"), Duration::from_mins(10), &[]).expect("a dialect")
    }

    fn image(name: &str) -> Image {
        let content = Content::InMemory(Bytes::from_static(b"JPEG"));
        Image { name: name.to_owned(), content_type: "image/jpeg", content }
    }

    #[test]
    fn path_of_the_url_overrides_that_of_the_api() {
        assert_eq!(dialect(Api::V1, "http://a").uri, "/v1/classify?wait=30");
        assert_eq!(dialect(Api::Legacy, "http://a").uri, "/");
        assert_eq!(dialect(Api::V1, "http://a/x?y=1").uri, "/x?y=1");
    }

    #[test]
    fn hostile_file_names_are_escaped_in_both_apis() {
        let name = "a\"\r\nX-Evil: 1; ü/..";
        let v1 = dialect(Api::V1, "http://a").prepare(&image(name));
        let expected = "attachment; filename*=UTF-8''a%22%0D%0AX-Evil%3A%201%3B%20%C3%BC%2F..";
        assert_eq!(v1.headers[CONTENT_DISPOSITION], expected);
        let legacy = dialect(Api::Legacy, "http://a").prepare(&image(name));
        let Body::Whole(form) = legacy.body else { panic!("on disk") };
        let form = String::from_utf8(form.to_vec()).expect("text");
        assert!(form.contains("name=\"myfile\"; filename=\"a%22%0D%0AX-Evil: 1; ü/..\"\r\n"), "{form}");
        assert!(form.ends_with(&format!("\r\n\r\nJPEG\r\n--{BOUNDARY}--\r\n")), "{form}");
    }

    #[test]
    fn label_of_the_legacy_system_is_cleaned() {
        let label = |text: &'static str| read_label(text.as_bytes()).map(|it| it.predictions[0].label.to_string());
        assert_eq!(label(" bathtub)\n"), Ok("bathtub".to_owned()));
        assert_eq!(label("tabby, tabby cat"), Ok("tabby, tabby cat".to_owned()));
        assert_eq!(label("crane (bird)"), Ok("crane (bird)".to_owned()));
        assert!(label(" \n").is_err());
    }

    #[test]
    fn only_unfinished_jobs_are_polled() {
        let v1 = dialect(Api::V1, "http://a");
        let ask =
            |status, location, body: &str| v1.poll_uri(status, location, body.as_bytes()).map(|it| it.to_string());
        let queued = r#"{"id":"0197","status":"queued"}"#;
        assert_eq!(ask(StatusCode::ACCEPTED, None, queued).as_deref(), Some("/v1/jobs/0197?wait=20"));
        assert_eq!(ask(StatusCode::ACCEPTED, Some("/j/7"), queued).as_deref(), Some("/j/7?wait=20"));
        assert_eq!(ask(StatusCode::OK, None, queued).as_deref(), Some("/v1/jobs/0197?wait=20"));
        assert_eq!(
            ask(StatusCode::ACCEPTED, None, r#"{"id":"a b/../c"}"#).as_deref(),
            Some("/v1/jobs/a%20b%2F..%2Fc?wait=20")
        );
        assert_eq!(ask(StatusCode::OK, None, r#"{"id":"0197","status":"failed"}"#), None);
        assert_eq!(ask(StatusCode::NOT_FOUND, None, queued), None);
        assert_eq!(ask(StatusCode::OK, None, "[]"), None);
    }

    #[test]
    fn every_answer_is_a_result_or_a_failure_with_a_reason() {
        let v1 = dialect(Api::V1, "http://a");
        let good = r#"{"status":"succeeded","predictions":[{"class_index":3,"label":"a\"b","score":0.5}],
            "timings_ms":{"queued":1,"fetched":2,"decoded":3,"inferred":4,"total":10.5},"more":[]}"#;
        let answer = v1.read(StatusCode::OK, good.as_bytes()).expect("an answer");
        assert_eq!((answer.predictions[0].class_index, &*answer.predictions[0].label), (Some(3), "a\"b"));
        assert!((answer.timings.expect("timings").total - 10.5).abs() < 1e-9);

        let failure = |status, body: &str| v1.read(status, body.as_bytes()).expect_err("no answer");
        let failed = failure(StatusCode::OK, r#"{"status":"failed","error":{"code":"undecodable","message":"cut"}}"#);
        assert_eq!(failed, Failure { reason: Reason::Job("undecodable".to_owned()), detail: Some("cut".to_owned()) });
        let full = failure(StatusCode::SERVICE_UNAVAILABLE, r#"{"title":"full","detail":"come again"}"#);
        assert_eq!(full, Failure { reason: Reason::Status(503), detail: Some("come again".to_owned()) });
        for odd in ["", "<html>", "{}", r#"{"status":"succeeded"}"#, r#"{"status":"queued"}"#] {
            assert_eq!(failure(StatusCode::OK, odd).reason, Reason::Unreadable, "{odd}");
        }
    }
}

//! The buckets with their policies, and the bundles and models in them.
//!
//! An adopted bucket may have lifecycle rules and policy statements of others. Only those of this program are compared
//! and changed.

use anyhow::{Context as _, anyhow, bail};
use aws_sdk_s3::error::ProvideErrorMetadata as _;
use aws_sdk_s3::operation::create_bucket::CreateBucketError;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    BucketLifecycleConfiguration, BucketLocationConstraint, CreateBucketConfiguration, Delete, ExpirationStatus,
    LifecycleExpiration, LifecycleRule, LifecycleRuleFilter, ObjectIdentifier, PublicAccessBlockConfiguration,
    ServerSideEncryption, ServerSideEncryptionByDefault, ServerSideEncryptionConfiguration, ServerSideEncryptionRule,
    Tag, Tagging,
};
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::client::{Attributes, CONCURRENT_CALLS, CONFLICT, Cloud, integer, member, owner_by_tags, retry_while, text};
use crate::aws::{Aws, Fault};
use crate::keys::journal::KEYS_FOLDER;
use crate::protocol::{MAX_POINTER_BYTES, MODELS_FOLDER, ModelPointer};
use crate::provision::artifacts::Artifacts;
use crate::provision::bundle::FOLDER;
use crate::provision::inventory::{FoundResource, Owner};
use crate::provision::permissions::TLS_ONLY;
use crate::provision::resource::{Kind, Resource, label, our_tags, properties, tags_of};
use crate::provision::stack::Stack;

/// Prefix of the ids of this program's lifecycle rules.
const OUR_RULES: &str = "imgcls-";
/// The only region that `CreateBucket` must not name.
const DEFAULT_REGION: &str = "us-east-1";
/// Time limit for the upload of some tens of megabytes over a slow connection.
const UPLOAD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(600);

impl Cloud {
    /// Observes the buckets that have the stack's names or its tag, with their policies, bundles and models. Also returns the
    /// names of those that contain data.
    pub(super) async fn observe_buckets(&self, stack: &Stack) -> anyhow::Result<(Vec<FoundResource>, Vec<String>)> {
        let all = self.done("s3:ListAllMyBuckets", "the buckets", self.s3.list_buckets().send().await)?;
        let all: Vec<String> = all.buckets.unwrap_or_default().into_iter().filter_map(|bucket| bucket.name).collect();
        for wanted in stack.names(Kind::Bucket) {
            if !all.iter().any(|name| name == wanted) {
                self.check_bucket_name_is_free(wanted).await?;
            }
        }
        let tagged = self.tagged("s3", &stack.name).await;
        let is_candidate = |name: &&String| stack.find(Kind::Bucket, name).is_some() || tagged.contains(name);
        let observed = all.iter().filter(is_candidate).map(|name| self.observe_bucket(stack, name));
        let observed: Vec<_> = futures::stream::iter(observed).buffer_unordered(CONCURRENT_CALLS).collect().await;
        let (mut found, mut with_data) = (Vec::new(), Vec::new());
        for bucket in observed {
            let (bucket, holds_data) = bucket?;
            if holds_data {
                with_data.extend(bucket.first().map(|bucket| bucket.name.clone()));
            }
            found.extend(bucket);
        }
        Ok((found, with_data))
    }

    /// Checks that no other account has a bucket of this name: bucket names are globally unique.
    async fn check_bucket_name_is_free(&self, name: &str) -> anyhow::Result<()> {
        let what = label(Kind::Bucket, name);
        match self.s3.list_objects_v2().bucket(name).max_keys(1).send().await {
            Ok(_) => bail!(
                "{what} belongs to another account, which lets you read it: give another --input-bucket or --output-bucket"
            ),
            Err(error) => match (error.code(), self.fault("s3:ListBucket", &what, &error)) {
                (_, Fault::Missing) => Ok(()),
                (Some("AccessDenied"), _) => Err(anyhow!(
                    "{what} belongs to another account: give another --input-bucket or --output-bucket, or another --stack"
                )),
                (_, Fault::Fatal(reason) | Fault::Unavailable(reason)) => Err(anyhow!(reason)),
            },
        }
    }

    /// Observes a bucket, its policy, and the bundles and models in it. Returns nothing if it is neither wanted nor owned by the stack.
    async fn observe_bucket(&self, stack: &Stack, name: &str) -> anyhow::Result<(Vec<FoundResource>, bool)> {
        let what = label(Kind::Bucket, name);
        let is_wanted = stack.find(Kind::Bucket, name).is_some();
        let tags = match self.s3.get_bucket_tagging().bucket(name).send().await {
            Ok(answer) => answer.tag_set,
            // It was deleted, and is still listed.
            Err(error) if error.code() == Some("NoSuchBucket") => return Ok((Vec::new(), false)),
            Err(error) => match self.fault("s3:GetBucketTagging", &what, &error) {
                Fault::Missing => Vec::new(),
                // The bucket belongs to somebody else, or is in another region.
                Fault::Fatal(_) if !is_wanted => return Ok((Vec::new(), false)),
                Fault::Fatal(reason) | Fault::Unavailable(reason) => bail!(reason),
            },
        };
        let pairs = || tags.iter().map(|tag| (tag.key.as_str(), tag.value.as_str()));
        let owner = owner_by_tags(pairs(), stack);
        if !is_wanted && owner != Owner::This {
            return Ok((Vec::new(), false));
        }
        let (access, encryption, rules, policy, (artifacts, holds_data)) = tokio::try_join!(
            self.public_access_block(name),
            self.encryption(name),
            self.lifecycle_rules(name),
            self.policy_statements(name),
            self.content(name, &owner),
        )?;
        let members = json!({
            "PublicAccessBlockConfiguration": access,
            "BucketEncryption": encryption,
            "LifecycleConfiguration": {"Rules": rules.iter().filter(|rule| is_ours(rule)).map(rule_to_json).collect::<Vec<_>>()},
            "Tags": our_tags(pairs(), &stack.own_tags),
        });
        let mut found = vec![FoundResource::new(Kind::Bucket, name, owner.clone(), members).with("Ref", name)];
        let ours: Vec<&Value> = policy.iter().filter(|statement| statement["Sid"] == TLS_ONLY).collect();
        if !ours.is_empty() {
            let members = json!({"PolicyDocument": {"Version": "2012-10-17", "Statement": ours}});
            found.push(FoundResource::new(Kind::BucketPolicy, name, owner, members));
        }
        found.extend(artifacts);
        Ok((found, holds_data))
    }

    pub(super) async fn public_access_block(&self, name: &str) -> anyhow::Result<Option<Value>> {
        let call = self.s3.get_public_access_block().bucket(name).send().await;
        let answer = self.if_there("s3:GetBucketPublicAccessBlock", &label(Kind::Bucket, name), call)?;
        Ok(answer.and_then(|answer| answer.public_access_block_configuration).map(|block| {
            json!({
                "BlockPublicAcls": block.block_public_acls.unwrap_or_default(),
                "BlockPublicPolicy": block.block_public_policy.unwrap_or_default(),
                "IgnorePublicAcls": block.ignore_public_acls.unwrap_or_default(),
                "RestrictPublicBuckets": block.restrict_public_buckets.unwrap_or_default(),
            })
        }))
    }

    async fn encryption(&self, name: &str) -> anyhow::Result<Option<Value>> {
        let call = self.s3.get_bucket_encryption().bucket(name).send().await;
        let answer = self.if_there("s3:GetEncryptionConfiguration", &label(Kind::Bucket, name), call)?;
        let rules = answer.and_then(|answer| answer.server_side_encryption_configuration).map(|found| found.rules);
        Ok(rules.map(|rules| {
            let rules = rules.iter().filter_map(|rule| rule.apply_server_side_encryption_by_default.as_ref());
            let rules: Vec<Value> = rules
                .map(|rule| {
                    let default = properties(
                        json!({"SSEAlgorithm": rule.sse_algorithm.as_str(), "KMSMasterKeyID": rule.kms_master_key_id}),
                    );
                    json!({ "ServerSideEncryptionByDefault": default })
                })
                .collect();
            json!({ "ServerSideEncryptionConfiguration": rules })
        }))
    }

    async fn lifecycle_rules(&self, name: &str) -> anyhow::Result<Vec<LifecycleRule>> {
        let call = self.s3.get_bucket_lifecycle_configuration().bucket(name).send().await;
        let answer = self.if_there("s3:GetLifecycleConfiguration", &label(Kind::Bucket, name), call)?;
        Ok(answer.and_then(|answer| answer.rules).unwrap_or_default())
    }

    pub(super) async fn policy_statements(&self, name: &str) -> anyhow::Result<Vec<Value>> {
        let call = self.s3.get_bucket_policy().bucket(name).send().await;
        let answer = self.if_there("s3:GetBucketPolicy", &label(Kind::Bucket, name), call)?;
        let text = answer.and_then(|answer| answer.policy).unwrap_or_default();
        let mut document: Value = serde_json::from_str(&text).unwrap_or_default();
        Ok(match document["Statement"].take() {
            Value::Array(statements) => statements,
            Value::Null => Vec::new(),
            statement => vec![statement],
        })
    }

    /// The bundles and models in a bucket, and whether it contains anything else. The keys of clients end with their stack.
    async fn content(&self, name: &str, owner: &Owner) -> anyhow::Result<(Vec<FoundResource>, bool)> {
        // One more than there are such folders. Versions include those of deleted objects, which are data too.
        let top = self.s3.list_object_versions().bucket(name).delimiter("/").max_keys(4).send().await;
        let top = self.done("s3:ListBucketVersions", &label(Kind::Bucket, name), top)?;
        let folders = top.common_prefixes.unwrap_or_default();
        let is_artifact = |folder: &str| [FOLDER, KEYS_FOLDER, MODELS_FOLDER].contains(&folder);
        let has_data = top.versions.is_some_and(|objects| !objects.is_empty())
            || folders.iter().any(|folder| !folder.prefix.as_deref().is_some_and(is_artifact));
        let mut found = Vec::new();
        for key in self.keys_under(name, FOLDER).await? {
            let digest = key.split('/').nth(1).unwrap_or_default().to_owned();
            found.push(FoundResource::new(Kind::Bundle, key, owner.clone(), json!({"Digest": digest})));
        }
        for key in self.keys_under(name, MODELS_FOLDER).await? {
            let (kind, properties) = match key.rsplit('/').next().and_then(|last| last.strip_suffix(".tar")) {
                Some(digest) => (Kind::ModelPackage, json!({"Digest": digest})),
                None => (Kind::ModelPointer, self.model_pointer(name, &key).await?),
            };
            found.push(FoundResource::new(kind, key, owner.clone(), properties));
        }
        Ok((found, has_data))
    }

    async fn keys_under(&self, bucket: &str, folder: &str) -> anyhow::Result<Vec<String>> {
        let mut keys = Vec::new();
        let mut pages = self.s3.list_objects_v2().bucket(bucket).prefix(folder).into_paginator().send();
        while let Some(page) = pages.next().await {
            let objects = self.done("s3:ListBucket", &label(Kind::Bucket, bucket), page)?.contents.unwrap_or_default();
            keys.extend(objects.into_iter().filter_map(|object| object.key));
        }
        Ok(keys)
    }

    /// The members of a pointer; none if the object is not one.
    async fn model_pointer(&self, bucket: &str, key: &str) -> anyhow::Result<Value> {
        let what = label(Kind::ModelPointer, key);
        let range = format!("bytes=0-{}", MAX_POINTER_BYTES - 1);
        let object = self.s3.get_object().bucket(bucket).key(key).range(range).send().await;
        let Some(object) = self.if_there("s3:GetObject", &what, object)? else { return Ok(json!({})) };
        let bytes = object.body.collect().await.with_context(|| format!("cannot read {what}"))?.into_bytes();
        Ok(match std::str::from_utf8(&bytes).ok().and_then(ModelPointer::parse) {
            Some(ModelPointer { version, digest, bytes }) => {
                json!({"Version": version, "Digest": digest, "Bytes": bytes})
            }
            None => json!({}),
        })
    }

    pub(super) async fn put_bucket(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        let (name, what) = (resource.name.as_str(), resource.label());
        if found.is_none() {
            self.create_bucket(resource).await?;
        }
        // Tags first: an adopted bucket belongs to the stack before anything else of it changes.
        self.tag_bucket(resource).await?;
        let block = member(resource, &["PublicAccessBlockConfiguration"])?;
        let is_set = |member: &str| block[member].as_bool();
        let closed = PublicAccessBlockConfiguration::builder()
            .set_block_public_acls(is_set("BlockPublicAcls"))
            .set_block_public_policy(is_set("BlockPublicPolicy"))
            .set_ignore_public_acls(is_set("IgnorePublicAcls"))
            .set_restrict_public_buckets(is_set("RestrictPublicBuckets"))
            .build();
        let call = self.s3.put_public_access_block().bucket(name).public_access_block_configuration(closed).send();
        self.done("s3:PutBucketPublicAccessBlock", &what, call.await)?;
        if found.is_none_or(|found| found.kms_key().is_none()) {
            self.encrypt(resource).await?;
        }
        self.put_lifecycle(resource).await?;
        Ok(vec![("Ref".to_owned(), name.to_owned())])
    }

    async fn encrypt(&self, resource: &Resource) -> anyhow::Result<()> {
        let default = ServerSideEncryptionByDefault::builder().sse_algorithm(ServerSideEncryption::Aes256).build()?;
        let rule = ServerSideEncryptionRule::builder().apply_server_side_encryption_by_default(default).build();
        let encrypted = ServerSideEncryptionConfiguration::builder().rules(rule).build()?;
        let call = self.s3.put_bucket_encryption().bucket(&resource.name);
        let answer = call.server_side_encryption_configuration(encrypted).send().await;
        self.done("s3:PutEncryptionConfiguration", &resource.label(), answer).map(drop)
    }

    /// Creates a bucket together with its tags. If this run died between two calls, the next one would refuse a bucket
    /// without tags.
    async fn create_bucket(&self, resource: &Resource) -> anyhow::Result<()> {
        let (name, region) = (resource.name.as_str(), self.aws.region());
        let location = (region != DEFAULT_REGION).then(|| BucketLocationConstraint::from(region));
        let tags = tags_of(&resource.properties).into_iter();
        let tags = tags.map(|(key, value)| Tag::builder().key(key).value(value).build()).collect::<Result<_, _>>()?;
        let configuration =
            CreateBucketConfiguration::builder().set_location_constraint(location).set_tags(Some(tags)).build();
        // S3 may take minutes to release the name of a deleted bucket.
        let is_transient = |error: &aws_sdk_s3::error::SdkError<_, _>| error.code() == Some(CONFLICT);
        let created = retry_while(is_transient, async || {
            let call = self.s3.create_bucket().bucket(name);
            call.create_bucket_configuration(configuration.clone()).send().await
        });
        match created.await {
            Ok(_) => Ok(()),
            Err(error) if error.as_service_error().is_some_and(CreateBucketError::is_bucket_already_owned_by_you) => {
                Ok(())
            }
            Err(error) if error.as_service_error().is_some_and(CreateBucketError::is_bucket_already_exists) => {
                Err(anyhow!(
                    "{} belongs to another account: give another --input-bucket or --output-bucket, or another --stack",
                    label(Kind::Bucket, name)
                ))
            }
            answer => self.done("s3:CreateBucket", &label(Kind::Bucket, name), answer).map(drop),
        }
    }

    /// Sets the tags of this program. `PutBucketTagging` replaces all tags, so those of others are read and written
    /// again.
    async fn tag_bucket(&self, resource: &Resource) -> anyhow::Result<()> {
        let (name, what) = (resource.name.as_str(), resource.label());
        let ours = tags_of(&resource.properties);
        let there = self.s3.get_bucket_tagging().bucket(name).send().await;
        let there =
            self.if_there("s3:GetBucketTagging", &what, there)?.map(|answer| answer.tag_set).unwrap_or_default();
        let mut tags: Vec<Tag> = there.into_iter().filter(|tag| !ours.iter().any(|(key, _)| *key == tag.key)).collect();
        for (key, value) in ours {
            tags.push(Tag::builder().key(key).value(value).build()?);
        }
        let tagging = Tagging::builder().set_tag_set(Some(tags)).build()?;
        let call = self.s3.put_bucket_tagging().bucket(name).tagging(tagging).send();
        self.done("s3:PutBucketTagging", &what, call.await).map(drop)
    }

    async fn put_lifecycle(&self, resource: &Resource) -> anyhow::Result<()> {
        let name = resource.name.as_str();
        let mut rules = self.lifecycle_rules(name).await?;
        rules.retain(|rule| !is_ours(rule));
        rules.iter_mut().for_each(use_filter);
        let ours = member(resource, &["LifecycleConfiguration", "Rules"])?.as_array().cloned().unwrap_or_default();
        for rule in &ours {
            rules.push(rule_from_json(rule)?);
        }
        let configuration = BucketLifecycleConfiguration::builder().set_rules(Some(rules)).build()?;
        let call = self.s3.put_bucket_lifecycle_configuration().bucket(name).lifecycle_configuration(configuration);
        self.done("s3:PutLifecycleConfiguration", &resource.label(), call.send().await).map(drop)
    }

    pub(super) async fn put_bucket_policy(&self, resource: &Resource) -> anyhow::Result<Attributes> {
        let ours = member(resource, &["PolicyDocument", "Statement"])?.as_array().cloned().unwrap_or_default();
        self.change_policy(&resource.name, ours).await?;
        Ok(Vec::new())
    }

    /// Replaces the statements of this program in a bucket's policy.
    async fn change_policy(&self, name: &str, ours: Vec<Value>) -> anyhow::Result<()> {
        let what = label(Kind::Bucket, name);
        let mut statements = self.policy_statements(name).await?;
        statements.retain(|statement| statement["Sid"] != TLS_ONLY);
        statements.extend(ours);
        if statements.is_empty() {
            return self.gone("s3:DeleteBucketPolicy", &what, self.s3.delete_bucket_policy().bucket(name).send().await);
        }
        let document = json!({"Version": "2012-10-17", "Statement": statements}).to_string();
        let call = self.s3.put_bucket_policy().bucket(name).policy(document).send();
        self.done("s3:PutBucketPolicy", &what, call.await).map(drop)
    }

    pub(super) async fn delete_bucket_policy(&self, name: &str) -> anyhow::Result<()> {
        self.change_policy(name, Vec::new()).await
    }

    pub(super) async fn put_bundle(
        &self,
        resource: &Resource,
        stack: &Stack,
        artifacts: Option<&Artifacts>,
    ) -> anyhow::Result<Attributes> {
        let bundle = artifacts.map(|artifacts| &artifacts.bundle).filter(|bundle| bundle.reference == stack.bundle);
        let bundle = bundle.context("the plan was made with another bundle: make a new one")?;
        self.upload(stack, &resource.name, bundle.packed()?, "application/gzip").await
    }

    pub(super) async fn put_model_package(
        &self,
        resource: &Resource,
        stack: &Stack,
        artifacts: Option<&Artifacts>,
    ) -> anyhow::Result<Attributes> {
        let mut packages = artifacts.into_iter().flat_map(|artifacts| &artifacts.packages);
        let package = packages.find(|package| package.reference.key() == resource.name);
        let package = package.context("the plan was made with another model: make a new one")?;
        self.upload(stack, &resource.name, package.packed()?, "application/x-tar").await
    }

    pub(super) async fn put_model_pointer(&self, resource: &Resource, stack: &Stack) -> anyhow::Result<Attributes> {
        let pointer = ModelPointer {
            version: text(member(resource, &["Version"])?),
            digest: text(member(resource, &["Digest"])?),
            bytes: member(resource, &["Bytes"])?.as_u64().context("a pointer without a size; this is a bug")?,
        };
        self.upload(stack, &resource.name, pointer.to_string().into_bytes(), "text/plain").await
    }

    async fn upload(&self, stack: &Stack, key: &str, body: Vec<u8>, content_type: &str) -> anyhow::Result<Attributes> {
        let bucket = input_bucket(stack)?;
        let deadlines = Aws::timeouts_with(UPLOAD_TIMEOUT);
        let deadlines = aws_sdk_s3::config::Builder::default().timeout_config(deadlines);
        let call = self.s3.put_object().bucket(bucket).key(key).body(ByteStream::from(body));
        let call = call.content_type(content_type).customize().config_override(deadlines).send();
        self.done("s3:PutObject", &label(Kind::Bucket, bucket), call.await)?;
        Ok(Vec::new())
    }

    /// Deletes a bundle, a model or a pointer.
    pub(super) async fn delete_artifact(&self, key: &str, stack: &Stack) -> anyhow::Result<()> {
        let bucket = input_bucket(stack)?;
        let call = self.s3.delete_object().bucket(bucket).key(key).send();
        self.gone("s3:DeleteObject", &label(Kind::Bucket, bucket), call.await)
    }

    /// Deletes a bucket and all objects in it, with their earlier versions.
    pub(super) async fn delete_bucket(&self, name: &str) -> anyhow::Result<()> {
        let what = label(Kind::Bucket, name);
        loop {
            let page = self.s3.list_object_versions().bucket(name).send().await;
            let Some(page) = self.if_there("s3:ListBucketVersions", &what, page)? else { return Ok(()) };
            let versions = page.versions.unwrap_or_default().into_iter().map(|object| (object.key, object.version_id));
            let markers =
                page.delete_markers.unwrap_or_default().into_iter().map(|marker| (marker.key, marker.version_id));
            let objects = versions.chain(markers).filter_map(|(key, version)| {
                Some(ObjectIdentifier::builder().key(key?).set_version_id(version).build())
            });
            let objects: Vec<_> = objects.collect::<Result<_, _>>()?;
            if objects.is_empty() {
                break;
            }
            let delete = Delete::builder().set_objects(Some(objects)).quiet(true).build()?;
            let answer = self.s3.delete_objects().bucket(name).delete(delete).send().await;
            let refused = self.done("s3:DeleteObject", &what, answer)?.errors.unwrap_or_default();
            if let Some(error) = refused.first() {
                let why = error.message.as_deref().or(error.code.as_deref()).unwrap_or("no reason was given");
                bail!("s3:DeleteObject on {what} was refused: {why}");
            }
        }
        self.gone("s3:DeleteBucket", &what, self.s3.delete_bucket().bucket(name).send().await)
    }
}

fn input_bucket(stack: &Stack) -> anyhow::Result<&str> {
    stack.get("InputBucket").map(|bucket| bucket.name.as_str()).context("the plan has no input bucket")
}

fn is_ours(rule: &LifecycleRule) -> bool {
    rule.id.as_deref().is_some_and(|id| id.starts_with(OUR_RULES))
}

/// Writes the prefix of an old rule as a filter. S3 refuses rules of both forms together.
fn use_filter(rule: &mut LifecycleRule) {
    #[allow(deprecated)]
    if let Some(prefix) = rule.prefix.take() {
        rule.filter.get_or_insert_with(|| LifecycleRuleFilter::builder().prefix(prefix).build());
    }
}

fn rule_to_json(rule: &LifecycleRule) -> Value {
    #[allow(deprecated)]
    let prefix = rule.filter.as_ref().and_then(|filter| filter.prefix.as_deref()).or(rule.prefix.as_deref());
    json!(properties(json!({
        "Id": rule.id, "Prefix": prefix, "Status": rule.status.as_str(),
        "ExpirationInDays": rule.expiration.as_ref().and_then(|expiration| expiration.days),
    })))
}

fn rule_from_json(rule: &Value) -> anyhow::Result<LifecycleRule> {
    let expiration = LifecycleExpiration::builder().set_days(integer(&rule["ExpirationInDays"])).build();
    let rule = LifecycleRule::builder()
        .id(text(&rule["Id"]))
        .filter(LifecycleRuleFilter::builder().prefix(text(&rule["Prefix"])).build())
        .status(ExpirationStatus::from(text(&rule["Status"]).as_str()))
        .expiration(expiration);
    Ok(rule.build()?)
}

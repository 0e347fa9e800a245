//! Images in a bucket of S3: `s3://bucket/prefix`. Keys are listed page by page, and each image is read where files are
//! read.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::runtime;

use super::AwsPlace;
use super::found::{Content, Found, Visitor};
use super::object::{Bucket, Object};
use super::rules::Rules;
use crate::transport::aws::{ObjectPage, Objects};

const SCHEME: &str = "s3://";

/// A place in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    bucket: String,
    prefix: String,
}

impl Location {
    /// Reads `s3://bucket/prefix`. `None` if the path is not of this form.
    pub(super) fn of(path: &Path) -> Option<Location> {
        let rest = path.to_str()?.strip_prefix(SCHEME)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        Some(Location { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    /// The part of the prefix that is a folder.
    fn folder(&self) -> &str {
        self.prefix.rfind('/').map_or("", |at| &self.prefix[..=at])
    }
}

/// Visits the images of a location, in the order of their keys. Without `prefix` their paths are reported below the
/// folder of the location.
///
/// # Errors
/// The bucket cannot be listed.
pub(super) fn walk(
    location: &Location,
    has_prefix: bool,
    place: &AwsPlace,
    rules: &Rules,
    visitor: &mut dyn Visitor,
) -> anyhow::Result<ControlFlow<()>> {
    // One thread of the runtime serves the connections of all threads that read.
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.context("cannot start the runtime of S3")?;
    let objects =
        runtime.block_on(Objects::open(&location.bucket, place.region.as_deref(), place.endpoint_url.as_deref()))?;
    let bucket = Arc::new(Bucket { runtime, objects });
    let mut page = None;
    loop {
        let ObjectPage { objects, next } =
            bucket.runtime.block_on(bucket.objects.list(&location.prefix, page.take()))?;
        for (key, bytes) in objects {
            let object = Object { bucket: Arc::clone(&bucket), key, bytes };
            if visit(location, has_prefix, rules, object, visitor).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        match next {
            Some(next) => page = Some(next),
            None => return Ok(ControlFlow::Continue(())),
        }
    }
}

fn visit(
    location: &Location,
    has_prefix: bool,
    rules: &Rules,
    object: Object,
    visitor: &mut dyn Visitor,
) -> ControlFlow<()> {
    // Consoles make empty objects as folders.
    if object.key.ends_with('/') {
        return ControlFlow::Continue(());
    }
    let relative = object.key.strip_prefix(location.folder()).unwrap_or(&object.key);
    if !rules.takes_in_archive(Path::new(relative)) {
        return visitor.skip();
    }
    let path = if has_prefix { format!("{SCHEME}{}/{}", location.bucket, object.key) } else { relative.to_owned() };
    let path = PathBuf::from(path);
    if visitor.wants(&path)? {
        visitor.image(Found { path, content: Content::Object(object) })?;
    }
    ControlFlow::Continue(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn location_has_a_bucket_and_a_prefix() {
        let location = |text: &str| Location::of(Path::new(text)).map(|found| (found.bucket.clone(), found.prefix));
        assert_eq!(location("s3://b/c/d"), Some(("b".to_owned(), "c/d".to_owned())));
        assert_eq!(location("s3://b"), Some(("b".to_owned(), String::new())));
        assert_eq!(location("b/c"), None);
        let folder = |text: &str| Location::of(Path::new(text)).unwrap().folder().to_owned();
        assert_eq!([folder("s3://b/c/d"), folder("s3://b/c/"), folder("s3://b/c")], ["c/", "c/", ""]);
    }
}

//! The buckets.

use super::{Findings, Observed, Target, is_public};

pub(super) fn check(observed: &Observed, target: &Target<'_>, findings: &mut Findings) {
    for name in [&target.names.input_bucket, &target.names.output_bucket] {
        let on = format!("bucket {name:?}");
        let Some(bucket) = observed.buckets.iter().find(|bucket| bucket.name == *name) else {
            findings.broken(
                &on,
                "it does not exist, or these credentials may not see it",
                "name the right one with --input-bucket and --output-bucket, or let `imgcls provision` make it",
            );
            continue;
        };
        if let Some(region) = &bucket.other_region {
            let fault = format!("it is in region {region}, the machines are in {}", target.region);
            let remedy = format!("use a bucket in {}: requests to another region are refused or billed", target.region);
            findings.broken(&on, fault, remedy);
            continue;
        }
        if !bucket.is_closed {
            findings.risk(&on, "public access is not blocked", "enable all four settings of its public access block");
        }
        if bucket.statements.iter().any(is_public) {
            findings.risk(&on, "its bucket policy allows everybody to use it", "remove the statement with Principal *");
        }
    }
}

//! Checks of an account before there is a stack.

use super::accounts::elf_that_needs;
use super::{Stack, environment, proxy, write_bundle_with};
use crate::emulators::moto_of_stacks;
use crate::provision::refusals::{Wire, refusal};

const NOT_OPTED_IN: &str = "<DescribeRegionsResponse><regionInfo><item><regionName>us-east-1</regionName>\
    <optInStatus>not-opted-in</optInStatus></item></regionInfo></DescribeRegionsResponse>";

fn with(command: &[&'static str], flags: &[&'static str]) -> Vec<&'static str> {
    [command, flags].concat()
}

fn answer(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).into_bytes()
}

#[test]
fn account_that_fits_passes_every_check() {
    let stack = Stack::new("flight");
    let checked = stack.succeeds(&["doctor", "--preflight"]);
    for expected in [
        "ok      region: the account has enabled us-east-1\n",
        "ok      types per zone: c7i.large, t3.small in 5 subnets of vpc-",
        "ok      processor: the bundle and all types are x86_64\n",
        "ok      C library: the bundle needs none\n",
        "ok      root volume: /dev/xvda with 8 GB",
        "ok      free plan: the account is not on the free plan of AWS\n",
        "ok      vCPU quota: 10 vCPUs of c7i.large, t3.small at most; Running On-Demand Standard instances allows 32",
    ] {
        assert!(checked.contains(expected), "{expected}\n{checked}");
    }
    assert_eq!(checked.lines().count(), 7, "{checked}");
    assert!(!stack.succeeds(&["plan"]).contains("vCPU"));
}

#[test]
fn machines_above_a_quota_are_named_before_the_plan() {
    let stack = Stack::new("flight");
    for (flags, expected) in [
        (
            &["--max", "40"][..],
            "broken  vCPU quota: 82 vCPUs of c7i.large, t3.small at most, and Running On-Demand Standard instances allows 32: \
             ask for more in Service Quotas (L-1216C47A)",
        ),
        (
            &["--max", "4", "--spot-share", "100"],
            "broken  vCPU quota: 8 vCPUs of c7i.large at most, and All Standard Spot Instance Requests allows 5: \
             ask for more in Service Quotas (L-34B43A08)",
        ),
    ] {
        let ran = stack.run(&with(&["doctor", "--preflight"], flags));
        assert!(ran.code == Some(1) && ran.stdout.contains(expected), "{expected}\n{}{}", ran.stdout, ran.stderr);
        let plan = stack.succeeds(&with(&["plan"], flags));
        assert!(plan.starts_with(expected) && plan.contains("to create"), "{plan}");
    }
}

#[test]
fn types_that_the_free_plan_does_not_start_are_named() {
    let address = proxy::start(|call| match call.operation().as_deref() {
        Some("GetAccountPlanState") => Some(answer(r#"{"accountPlanType": "FREE"}"#)),
        _ => call.forward_to(moto_of_stacks().address),
    });
    let stack = Stack { environment: environment(&format!("http://{address}")), ..Stack::new("flight") };
    let ran = stack.run(&["doctor", "--preflight"]);
    let expected = "broken  free plan: the account is on the free plan of AWS, which does not start c7i.large";
    assert!(ran.code == Some(1) && ran.stdout.contains(expected), "{}{}", ran.stdout, ran.stderr);
    assert!(stack.succeeds(&["plan"]).starts_with(expected));
}

#[test]
fn one_check_that_fails_hides_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = write_bundle_with(folder.path(), "new", &elf_that_needs("GLIBC_2.41"));
    let stack = Stack { bundle, ..Stack::new("flight") };
    let ran = stack.run(&["doctor", "--preflight", "--instance-type", "c99g.huge", "--image", "ami-00000000"]);
    assert_eq!(ran.code, Some(1));
    for expected in [
        "ok      region:",
        "broken  types per zone: no zone of VPC",
        "broken  processor: instance type c99g.huge is arm64, the bundle x86_64",
        "ok      C library: the bundle needs glibc 2.41; that of ami-00000000 is not known",
        "broken  root volume: there is no AMI ami-00000000 in us-east-1",
        "unknown vCPU quota:",
    ] {
        assert!(ran.stdout.contains(expected), "{expected}\n{}", ran.stdout);
    }
    let ran = stack.run(&["doctor", "--preflight", "--json"]);
    assert!(ran.stdout.contains("the bundle needs glibc 2.41, and the AMI of the machines (Debian 12) has 2.36"));
}

#[test]
fn region_that_the_account_has_not_enabled_is_named_instead_of_its_credentials() {
    let at = |knows_credentials: bool| {
        let address = proxy::start(move |call| match call.operation().as_deref() {
            Some("GetCallerIdentity") if !knows_credentials => {
                Some(refusal(Wire::Query, 403, "InvalidClientTokenId", "The security token is invalid."))
            }
            Some("DescribeRegions") => Some(answer(NOT_OPTED_IN)),
            _ => call.forward_to(moto_of_stacks().address),
        });
        Stack { environment: environment(&format!("http://{address}")), ..Stack::new("flight") }
    };
    let expected = "the account has not enabled region us-east-1: enable it (aws account enable-region";
    // The default names of buckets need the account's number, so that without names it is asked for earlier.
    let error = at(false).fails(&["plan", "--input-bucket", "flight-in", "--output-bucket", "flight-out"]);
    assert!(error.contains(expected), "{error}");
    let ran = at(true).run(&["doctor", "--preflight"]);
    assert!(ran.code == Some(1) && ran.stdout.contains(&format!("broken  region: {expected}")), "{}", ran.stdout);
}

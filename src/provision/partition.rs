//! The partitions of AWS: separate sets of regions, each with host names and ARNs of its own.

/// A partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partition {
    /// The name in ARNs.
    pub name: &'static str,
    /// The end of host names.
    pub suffix: &'static str,
    /// The region that calls of IAM are signed for.
    pub iam_region: &'static str,
    /// The host of IAM without the suffix.
    iam: &'static str,
    /// The beginning of the names of its regions.
    prefix: &'static str,
}

/// The endpoint of AWS Budgets: a partition has one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budgets {
    pub host: &'static str,
    /// The region that calls are signed for.
    pub region: &'static str,
}

const AWS: Partition =
    Partition { name: "aws", suffix: "amazonaws.com", iam_region: "us-east-1", iam: "iam", prefix: "" };

/// Source: `partitions.json` and `endpoints.json` of botocore.
const OTHERS: [Partition; 7] = [
    Partition {
        name: "aws-cn",
        suffix: "amazonaws.com.cn",
        iam_region: "cn-north-1",
        iam: "iam.cn-north-1",
        prefix: "cn-",
    },
    Partition {
        name: "aws-us-gov",
        suffix: "amazonaws.com",
        iam_region: "us-gov-west-1",
        iam: "iam.us-gov",
        prefix: "us-gov-",
    },
    Partition {
        name: "aws-eusc",
        suffix: "amazonaws.eu",
        iam_region: "eusc-de-east-1",
        iam: "iam.eusc-de-east-1",
        prefix: "eusc-",
    },
    Partition {
        name: "aws-iso",
        suffix: "c2s.ic.gov",
        iam_region: "us-iso-east-1",
        iam: "iam.us-iso-east-1",
        prefix: "us-iso-",
    },
    Partition {
        name: "aws-iso-b",
        suffix: "sc2s.sgov.gov",
        iam_region: "us-isob-east-1",
        iam: "iam.us-isob-east-1",
        prefix: "us-isob-",
    },
    Partition {
        name: "aws-iso-e",
        suffix: "cloud.adc-e.uk",
        iam_region: "eu-isoe-west-1",
        iam: "iam.eu-isoe-west-1",
        prefix: "eu-isoe-",
    },
    Partition {
        name: "aws-iso-f",
        suffix: "csp.hci.ic.gov",
        iam_region: "us-isof-south-1",
        iam: "iam.us-isof-south-1",
        prefix: "us-isof-",
    },
];

impl Partition {
    pub(super) fn of(region: &str) -> Partition {
        OTHERS.into_iter().find(|partition| region.starts_with(partition.prefix)).unwrap_or(AWS)
    }

    /// AWS Budgets, which only these partitions have. Source: `endpoints.json` of botocore.
    pub(super) fn budgets(self) -> Option<Budgets> {
        let (host, region) = match self.name {
            "aws" => ("budgets.amazonaws.com", "us-east-1"),
            "aws-cn" => ("budgets.amazonaws.com.cn", "cn-northwest-1"),
            "aws-iso" => ("budgets.c2s.ic.gov", "us-iso-east-1"),
            "aws-iso-b" => ("budgets.global.sc2s.sgov.gov", "us-isob-east-1"),
            _ => return None,
        };
        Some(Budgets { host, region })
    }

    /// The host of IAM, which has one for the whole partition.
    pub(super) fn iam_host(self) -> String {
        format!("{}.{}", self.iam, self.suffix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_region_is_in_its_partition() {
        for (region, name, iam) in [
            ("eu-central-1", "aws", "iam.amazonaws.com"),
            ("cn-northwest-1", "aws-cn", "iam.cn-north-1.amazonaws.com.cn"),
            ("us-gov-east-1", "aws-us-gov", "iam.us-gov.amazonaws.com"),
            ("eusc-de-east-1", "aws-eusc", "iam.eusc-de-east-1.amazonaws.eu"),
            ("us-iso-west-1", "aws-iso", "iam.us-iso-east-1.c2s.ic.gov"),
            ("us-isob-east-1", "aws-iso-b", "iam.us-isob-east-1.sc2s.sgov.gov"),
            ("eu-isoe-west-1", "aws-iso-e", "iam.eu-isoe-west-1.cloud.adc-e.uk"),
            ("us-isof-east-1", "aws-iso-f", "iam.us-isof-south-1.csp.hci.ic.gov"),
        ] {
            let partition = Partition::of(region);
            assert_eq!((partition.name, partition.iam_host().as_str()), (name, iam), "{region}");
        }
    }
}

//! AMIs: their processor and their root volume.

use anyhow::bail;
use serde_json::{Value, json};

use super::client::Cloud;
use super::query::list;
use crate::provision::bundle::Cpu;
use crate::provision::settings::RootVolume;

impl Cloud {
    async fn image(&self, id: &str) -> anyhow::Result<Option<Value>> {
        let images = self.all("DescribeImages", &format!("AMI {id}"), json!({ "ImageIds": [id] })).await?;
        Ok(images.into_iter().next())
    }

    /// The processor of an AMI. Returns `None` if it is not visible to this account, or named by an unknown parameter.
    pub(super) async fn cpu_of_image(&self, image: &str) -> anyhow::Result<Option<Cpu>> {
        if let Some(cpu) = [Cpu::X86_64, Cpu::Arm64].into_iter().find(|cpu| cpu.debian_image() == image) {
            return Ok(Some(cpu));
        }
        if !image.starts_with("ami-") {
            return Ok(None);
        }
        Ok(self.image(image).await?.as_ref().and_then(cpu))
    }

    /// The root volume of the AMI that the user gives, for a bundle of this processor. That of a parameter is unknown, and
    /// taken to be like Debian's.
    ///
    /// # Errors
    /// There is no such AMI, or it is for another processor.
    pub(in crate::provision) async fn root_volume(
        &self,
        image: Option<&str>,
        bundle: Cpu,
    ) -> anyhow::Result<RootVolume> {
        let Some(id) = image.filter(|image| image.starts_with("ami-")) else { return Ok(RootVolume::default()) };
        let region = self.aws.region();
        let Some(image) = self.image(id).await? else {
            bail!("there is no AMI {id} in {region}: give another --image, or --region");
        };
        if let Some(other) = cpu(&image).filter(|found| *found != bundle) {
            bail!("AMI {id} is for {other}, the bundle for {bundle}: give another --image or --bundle");
        }
        let default = RootVolume::default();
        let Some(device) = image["rootDeviceName"].as_str().filter(|name| !name.is_empty()) else { return Ok(default) };
        let mapping = list(&image, "blockDeviceMapping").find(|mapping| mapping["deviceName"] == device);
        let snapshot = mapping.and_then(|mapping| mapping["ebs"]["volumeSize"].as_str()?.parse().ok());
        let gigabytes = default.gigabytes.max(snapshot.unwrap_or_default());
        Ok(RootVolume { device: device.to_owned(), gigabytes })
    }
}

fn cpu(image: &Value) -> Option<Cpu> {
    match image["architecture"].as_str() {
        Some("x86_64") => Some(Cpu::X86_64),
        Some("arm64") => Some(Cpu::Arm64),
        _ => None,
    }
}

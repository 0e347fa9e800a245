//! Notices that an instance is to be terminated.

/// The reason to terminate an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The Auto Scaling group scales in. It waits until the instance has drained.
    ScaleIn,
    /// EC2 interrupts the Spot instance within two minutes.
    Spot,
}

impl Notice {
    /// The name in log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Notice::ScaleIn => "scale-in",
            Notice::Spot => "spot",
        }
    }
}

//! The addresses that are not on the public internet, by the special-purpose registries of IANA (RFC 6890 and its updates).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ranges of IPv4: network, length of the prefix, kind.
const V4: [([u8; 4], u32, &str); 17] = [
    ([0, 0, 0, 0], 8, "of this machine"),
    ([10, 0, 0, 0], 8, "private"),
    ([100, 64, 0, 0], 10, "of a carrier's network"),
    ([127, 0, 0, 0], 8, "of this machine"),
    // The metadata of most clouds is at 169.254.169.254.
    ([169, 254, 0, 0], 16, "link-local"),
    ([172, 16, 0, 0], 12, "private"),
    // Also the metadata of Oracle's cloud, 192.0.0.192.
    ([192, 0, 0, 0], 24, "reserved"),
    ([192, 0, 2, 0], 24, "reserved for documentation"),
    ([192, 88, 99, 0], 24, "of 6to4 relays"),
    ([192, 168, 0, 0], 16, "private"),
    ([198, 18, 0, 0], 15, "reserved for benchmarks"),
    ([198, 51, 100, 0], 24, "reserved for documentation"),
    ([203, 0, 113, 0], 24, "reserved for documentation"),
    // Public, but each machine on Azure reaches its own host there.
    ([168, 63, 129, 16], 32, "of the metadata of a cloud"),
    ([224, 0, 0, 0], 4, "multicast"),
    ([255, 255, 255, 255], 32, "broadcast"),
    ([240, 0, 0, 0], 4, "reserved"),
];

/// Ranges within 2000::/3 that are not public hosts: network, length of the prefix, kind.
const V6: [(u128, u32, &str); 4] = [
    // Teredo, ORCHID, benchmarks: protocols whose addresses stand for others.
    (0x2001_0000 << 96, 23, "reserved"),
    (0x2001_0db8 << 96, 32, "reserved for documentation"),
    // Each contains an IPv4 address, to which a router may pass the connection.
    (0x2002 << 112, 16, "of 6to4"),
    (0x3fff << 112, 20, "reserved for documentation"),
];
/// Public hosts have addresses in this range, 2000::/3.
const PUBLIC_V6: u128 = 0x2000 << 112;
/// Addresses of IPv4 hosts as hosts without IPv4 see them, 64:ff9b::/96.
const NAT64: u128 = 0x0064_ff9b << 96;

/// Returns the kind of an address that is not public, or `None` for a public one.
pub(super) fn special_kind(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let is_in = |network: [u8; 4], bits: u32| (address.to_bits() ^ u32::from_be_bytes(network)) >> (32 - bits) == 0;
    V4.iter().find(|(network, bits, _)| is_in(*network, *bits)).map(|(_, _, kind)| *kind)
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    if let Some(mapped) = address.to_ipv4_mapped() {
        return special_v4(mapped);
    }
    let bits = address.to_bits();
    let is_in = |network: u128, length: u32| (bits ^ network) >> (128 - length) == 0;
    if is_in(NAT64, 96) {
        return special_v4(Ipv4Addr::from_bits(bits as u32));
    }
    if is_in(PUBLIC_V6, 3) {
        return V6.iter().find(|(network, length, _)| is_in(*network, *length)).map(|(_, _, kind)| *kind);
    }
    Some(match address.segments()[0] {
        _ if address.is_loopback() || address.is_unspecified() => "of this machine",
        0xfc00..=0xfdff => "private",
        0xfe80..=0xfeff => "link-local",
        0xff00..=0xffff => "multicast",
        _ => "reserved",
    })
}

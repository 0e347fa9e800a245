//! File names from clients.

/// Truncates a file name to the maximum of 255 bytes of the wire, at a character boundary.
pub fn cut_filename(name: &str) -> &str {
    const LIMIT_BYTES: usize = 255;
    if name.len() <= LIMIT_BYTES {
        return name;
    }
    let end = (0..=LIMIT_BYTES).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
    &name[..end]
}

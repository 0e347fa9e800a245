//! The images that are done, in about thirteen bytes each, with what the allocator adds.

use sha2::{Digest as _, Sha256};

use super::row::PathText;

/// 96 bits of a digest of the path. Among ten million paths, two have the same with a probability below 10⁻¹⁵.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    bucket: u16,
    rest: [u8; 10],
}

impl Key {
    pub(super) fn of(path: &PathText) -> Key {
        let digest = Sha256::digest(path.as_str().as_bytes());
        let mut rest = [0; 10];
        rest.copy_from_slice(&digest[2..12]);
        Key { bucket: u16::from_be_bytes([digest[0], digest[1]]), rest }
    }
}

/// A set of keys: a sorted list for each value of the first 16 bits, which are not stored. The lists are short, so that
/// inserting moves little, and each grows by an eighth, so that little is allocated ahead.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    buckets: Vec<Vec<[u8; 10]>>,
}

impl KeySet {
    pub(super) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    pub(super) fn contains(&self, key: Key) -> bool {
        self.buckets.get(usize::from(key.bucket)).is_some_and(|bucket| bucket.binary_search(&key.rest).is_ok())
    }

    pub(super) fn insert(&mut self, key: Key) {
        if self.buckets.is_empty() {
            self.buckets.resize(1 << 16, Vec::new());
        }
        let bucket = &mut self.buckets[usize::from(key.bucket)];
        if let Err(at) = bucket.binary_search(&key.rest) {
            if bucket.len() == bucket.capacity() {
                bucket.reserve_exact((bucket.len() / 8).max(4));
            }
            bucket.insert(at, key.rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Key {
        Key::of(&PathText::from_bytes(format!("folder/{number}.jpg").as_bytes()))
    }

    #[test]
    fn set_contains_what_was_inserted_and_nothing_else() {
        let mut set = KeySet::default();
        assert!(!set.contains(key(0)));
        (0..50_000).for_each(|number| set.insert(key(number)));
        set.insert(key(7));
        assert!((0..50_000).all(|number| set.contains(key(number))));
        assert!((50_000..100_000).all(|number| !set.contains(key(number))));
        let stored: usize = set.buckets.iter().map(Vec::len).sum();
        assert_eq!(stored, 50_000);
    }

    #[test]
    fn a_key_takes_less_than_twelve_bytes() {
        let mut set = KeySet::default();
        for number in 0..200_000u32 {
            // All keys share a few buckets, which are then as full as those of ten million paths.
            let digest = key(number);
            set.insert(Key { bucket: digest.bucket % 1_024, ..digest });
        }
        let allocated: usize = set.buckets.iter().map(|bucket| bucket.capacity() * 10).sum();
        assert!(allocated < 200_000 * 12, "{allocated}");
    }
}

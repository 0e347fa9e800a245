//! The images to train on: copies and contradictions are left out, and a part is held out for the test.

use std::collections::{BTreeMap, HashMap};

use anyhow::ensure;
use sha2::{Digest as _, Sha256};

/// The share of the images of each class that is held out.
const HELD_OUT: f64 = 0.2;

/// One image with its features.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    /// Index of the image in the data.
    pub image: usize,
    pub class: usize,
    /// SHA-256 of the file.
    pub digest: [u8; 32],
    pub features: Vec<f32>,
}

/// Samples with different contents.
#[derive(Debug, Default)]
pub(super) struct Distinct {
    pub samples: Vec<Sample>,
    /// Number of files that are copies of others of their class.
    pub copies: usize,
    /// Two images with the same content in different classes; neither they nor further copies are used.
    pub contradictions: Vec<(usize, usize)>,
}

/// Indexes of samples.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Split {
    pub training: Vec<usize>,
    pub held_out: Vec<usize>,
}

/// The digest of a file.
pub(super) fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Keeps one of several equal files. A copy among the held-out images would only test the memory of the head.
pub(super) fn distinct(samples: Vec<Sample>) -> Distinct {
    let mut first: HashMap<[u8; 32], (usize, usize)> = HashMap::new();
    let mut contradictory: BTreeMap<[u8; 32], (usize, usize)> = BTreeMap::new();
    for sample in &samples {
        let (image, class) = *first.entry(sample.digest).or_insert((sample.image, sample.class));
        if class != sample.class {
            contradictory.entry(sample.digest).or_insert((image, sample.image));
        }
    }
    let mut found = Distinct::default();
    for sample in samples {
        if contradictory.contains_key(&sample.digest) {
            continue;
        }
        if first.get(&sample.digest).is_some_and(|(image, _)| *image == sample.image) {
            found.samples.push(sample);
        } else {
            found.copies += 1;
        }
    }
    found.contradictions = contradictory.into_values().collect();
    found.contradictions.sort_unstable();
    found
}

/// Checks that every class has an image to train on and one to test with.
///
/// # Errors
/// One line that names the classes with fewer than two images.
pub(super) fn check_counts(names: &[String], counts: &[usize]) -> anyhow::Result<()> {
    ensure!(
        names.len() > 1,
        "there is one class, {:?}; give a folder with at least two folders, one for each class",
        names.first().map_or("", String::as_str)
    );
    let few: Vec<String> = names
        .iter()
        .zip(counts)
        .filter(|(_, count)| **count < 2)
        .map(|(name, count)| format!("{name:?} has {count}"))
        .collect();
    ensure!(
        few.is_empty(),
        "each class needs at least two different images, one to train on and one to test with: {}",
        few.join(", ")
    );
    Ok(())
}

/// Holds out a fifth of each class, at least one image. Which images depends only on the seed and the contents of
/// the class, not on the names or the order of files. Every class must have two samples.
pub(super) fn split(samples: &[Sample], class_count: usize, seed: u64) -> Split {
    let mut split = Split::default();
    for class in 0..class_count {
        let mut shuffled: Vec<([u8; 32], usize)> = samples
            .iter()
            .enumerate()
            .filter(|(_, sample)| sample.class == class)
            .map(|(index, sample)| (order(seed, &sample.digest), index))
            .collect();
        shuffled.sort_unstable();
        let count = (shuffled.len() as f64 * HELD_OUT).round() as usize;
        let (held_out, training) = shuffled.split_at(count.max(1).min(shuffled.len()));
        split.held_out.extend(held_out.iter().map(|(_, index)| index));
        split.training.extend(training.iter().map(|(_, index)| index));
    }
    // The order of the sums of the training is that of the files.
    split.training.sort_unstable();
    split.held_out.sort_unstable();
    split
}

fn order(seed: u64, digest: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(seed.to_le_bytes()).chain_update(digest).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(image: usize, class: usize, content: u8) -> Sample {
        Sample { image, class, digest: digest(&[content]), features: Vec::new() }
    }

    #[test]
    fn copies_are_used_once_and_contradictions_never() {
        let samples = vec![sample(0, 0, 1), sample(1, 0, 1), sample(2, 0, 2), sample(3, 1, 2), sample(4, 1, 3)];
        let found = distinct(samples);
        let images: Vec<usize> = found.samples.iter().map(|sample| sample.image).collect();
        assert_eq!((images, found.copies, found.contradictions), (vec![0, 4], 1, vec![(2, 3)]));
    }

    #[test]
    fn a_fifth_of_each_class_is_held_out_and_stays_so() {
        let samples: Vec<Sample> = (0..52).map(|index| sample(index, usize::from(index >= 50), index as u8)).collect();
        let first = split(&samples, 2, 7);
        let in_class = |indexes: &[usize], class: usize| indexes.iter().filter(|i| samples[**i].class == class).count();
        assert_eq!((in_class(&first.held_out, 0), in_class(&first.training, 0)), (10, 40));
        assert_eq!((in_class(&first.held_out, 1), in_class(&first.training, 1)), (1, 1));
        assert_eq!(split(&samples, 2, 7), first);
        assert_ne!(split(&samples, 2, 8), first);
        // The same images in another order are split the same way.
        let reversed: Vec<Sample> = samples.iter().rev().cloned().collect();
        let images = |samples: &[Sample], indexes: &[usize]| {
            let mut images: Vec<usize> = indexes.iter().map(|index| samples[*index].image).collect();
            images.sort_unstable();
            images
        };
        let other = split(&reversed, 2, 7);
        assert_eq!(images(&samples, &first.held_out), images(&reversed, &other.held_out));
    }

    #[test]
    fn too_few_classes_or_images_are_refused() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let refused = |list: &[&str], counts: &[usize]| check_counts(&names(list), counts).unwrap_err().to_string();
        assert!(refused(&["cat"], &[9]).contains("one class, \"cat\""));
        assert!(refused(&["cat", "dog", "cow"], &[9, 1, 0]).ends_with("\"dog\" has 1, \"cow\" has 0"));
        assert!(check_counts(&names(&["cat", "dog"]), &[2, 2]).is_ok());
    }
}

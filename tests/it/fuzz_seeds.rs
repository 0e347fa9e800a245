//! The seeds of the fuzz targets and the small test images, through those targets. So the targets are compiled with every
//! change of what they call, and a seed that once failed is tried each time.

use std::path::{Path, PathBuf};

#[path = "../../fuzz/src/targets/mod.rs"]
mod targets;

use targets::{TARGETS, Verdict};

#[test]
fn every_target_takes_its_seeds() {
    let images = files(Path::new("tests/pictures"));
    for (name, target) in TARGETS {
        let of_images = images.iter().filter(|_| name.starts_with("decode_"));
        let seeds = files(&Path::new("fuzz/seeds").join(name));
        let kept = seeds.iter().chain(of_images).filter(|path| {
            let input = std::fs::read(path).unwrap();
            target(&input) == Verdict::Keep
        });
        assert!(kept.count() > 0, "{name} has no seed that it keeps");
    }
}

/// The files of a folder and its folders that a target reads within milliseconds; none if there is no such folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let small = files.into_iter().filter(|file| file.metadata().unwrap().len() < 100_000);
    small.chain(folders.iter().flat_map(|folder| self::files(folder))).collect()
}

//! The bundle that machines run: this program, the ONNX Runtime library, and the models that do not lie in the bucket by
//! themselves, in one archive whose name contains the digest of its content.
//!
//! The digest is that of the uncompressed archive, so it does not depend on the compressor and takes no more than
//! reading the files.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::archive::{self, Entry};
use super::elf::{self, Glibc};
use crate::model::{self, ModelChoice, Reference};

/// Paths in the archive. The program looks for the others relative to itself (`../lib/imgcls`, `../share/imgcls`).
const PROGRAM: &str = "bin/imgcls";
const LIBRARIES: &str = "lib/imgcls";
const MODELS: &str = "share/imgcls/models";
/// Longest program or library that is read from a bundle.
const MOST_PROGRAM_BYTES: u64 = 1 << 30;
/// Prefix of all bundles in the input bucket.
pub(super) const FOLDER: &str = "bundle/";

/// Processor architecture of a program, an instance type or an AMI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cpu {
    #[serde(rename = "x86_64")]
    X86_64,
    Arm64,
}

/// Identifies a bundle. A plan needs nothing else of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BundleRef {
    /// SHA-256 of the uncompressed archive, in hexadecimal.
    pub digest: String,
    pub cpu: Cpu,
    /// The GNU C library that its programs need.
    #[serde(default)]
    pub glibc: Option<Glibc>,
    /// Names of the models in it. Empty if the models of the stack lie in the bucket.
    pub models: Vec<String>,
}

/// A bundle and the files that it is made from.
pub(super) struct Bundle {
    pub reference: BundleRef,
    source: Source,
}

enum Source {
    Files(Vec<Entry>),
    Archive(PathBuf),
}

impl Cpu {
    /// The processor of an instance type, by its name: Graviton families have a `g` after the generation (`c7g`,
    /// `m6gd`).
    pub(super) fn of_instance_type(name: &str) -> Cpu {
        let family = name.split('.').next().unwrap_or_default();
        let options =
            family.trim_start_matches(|c: char| !c.is_ascii_digit()).trim_start_matches(|c: char| c.is_ascii_digit());
        if options.contains('g') || family == "a1" { Cpu::Arm64 } else { Cpu::X86_64 }
    }

    /// Reads the processor from the first bytes of an ELF file.
    fn of_program(head: &[u8]) -> Option<Cpu> {
        let machine = head.starts_with(b"\x7fELF").then(|| head.get(18..20)).flatten()?;
        match u16::from_le_bytes([machine[0], machine[1]]) {
            62 => Some(Cpu::X86_64),
            183 => Some(Cpu::Arm64),
            _ => None,
        }
    }

    /// The C library of [`Cpu::debian_image`].
    pub(super) const DEBIAN_GLIBC: Glibc = Glibc { major: 2, minor: 36 };

    /// The newest release of Debian 12 at the start of the machine. The program runs with its C library.
    pub(super) fn debian_image(self) -> String {
        let name = match self {
            Cpu::X86_64 => "amd64",
            Cpu::Arm64 => "arm64",
        };
        format!("resolve:ssm:/aws/service/debian/release/12/latest/{name}")
    }

    pub(super) fn default_worker_type(self) -> &'static str {
        match self {
            Cpu::X86_64 => "c7i.large",
            Cpu::Arm64 => "c7g.large",
        }
    }

    pub(super) fn default_web_type(self) -> &'static str {
        match self {
            Cpu::X86_64 => "t3.small",
            Cpu::Arm64 => "t4g.small",
        }
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cpu::X86_64 => "x86_64",
            Cpu::Arm64 => "arm64",
        })
    }
}

impl BundleRef {
    /// A placeholder for operations that only need the names of a stack's resources.
    pub(super) fn unknown() -> BundleRef {
        BundleRef { digest: "0".repeat(64), cpu: Cpu::X86_64, glibc: None, models: Vec::new() }
    }

    /// The bundle's key in the input bucket.
    pub(super) fn key(&self) -> String {
        format!("{FOLDER}{}/imgcls-{}.tar.gz", self.digest, self.cpu)
    }
}

impl Bundle {
    /// Makes a bundle of this program, of the library that `runtime` names or that it finds, and of the models.
    ///
    /// # Errors
    /// One of them is missing or cannot be read.
    pub(super) fn of_this_program(runtime: &ModelChoice, models: &[ModelChoice]) -> anyhow::Result<Bundle> {
        let program =
            std::env::current_exe().context("cannot find the file of this program to put it into the bundle")?;
        let (library, library_name) = model::portable_runtime(runtime)?;
        let (cpu, glibc) = (cpu_of(&program)?, glibc_of(&[&program, &library])?);
        let mut files = vec![
            Entry::new(PROGRAM, 0o755, program),
            Entry::new(format!("{LIBRARIES}/{library_name}"), 0o644, library),
        ];
        let mut names = Vec::new();
        for choice in models {
            let folder = model::model_folder(choice)?;
            let name = model::model_name(choice);
            Reference::parse(&name).context("a stack cannot have this model")?;
            files.extend(files_of_model(&folder, choice.variant.as_deref(), &format!("{MODELS}/{name}/"))?);
            names.push(name);
        }
        let digest = archive::measure(&files).context("cannot read what goes into the bundle")?.digest;
        Ok(Bundle { reference: BundleRef { digest, cpu, glibc, models: names }, source: Source::Files(files) })
    }

    /// Opens an archive that `imgcls provision export --bundle-to` wrote.
    ///
    /// # Errors
    /// The file is not a bundle.
    pub(super) fn of_archive(path: &Path) -> anyhow::Result<Bundle> {
        let reference = read_archive(path).with_context(|| {
            format!(
                "{} is not a bundle; `imgcls provision export --bundle-to FILE` writes one, on a machine with the same processor as those that will run it",
                path.display()
            )
        })?;
        Ok(Bundle { reference, source: Source::Archive(path.to_owned()) })
    }

    /// The compressed archive.
    ///
    /// # Errors
    /// A file cannot be read, or has changed since the digest was computed.
    pub(super) fn packed(&self) -> anyhow::Result<Vec<u8>> {
        match &self.source {
            Source::Archive(path) => std::fs::read(path).with_context(|| path.display().to_string()),
            Source::Files(files) => {
                let mut packer =
                    Tee { hasher: Sha256::new(), packer: GzEncoder::new(Vec::new(), Compression::default()) };
                archive::write(files, &mut packer).context("cannot read what goes into the bundle")?;
                if format!("{:x}", packer.hasher.finalize()) != self.reference.digest {
                    bail!("the program or its model changed while the bundle was made; run this again");
                }
                packer.packer.finish().context("cannot pack the bundle")
            }
        }
    }
}

/// The files of a model, without the variants that no machine chooses.
fn files_of_model(folder: &Path, variant: Option<&str>, prefix: &str) -> anyhow::Result<Vec<Entry>> {
    let mut files = archive::files_of(folder, prefix)?;
    let part = model::used_part(folder, variant)?;
    if part.left_out.is_empty() {
        return Ok(files);
    }
    let description = format!("{prefix}{}", model::DESCRIPTION);
    let is_left_out = |name: &str| name.strip_prefix(prefix).is_some_and(|path| part.left_out.contains(path));
    files.retain(|entry| entry.name != description && !is_left_out(&entry.name));
    files.push(Entry::of_text(description, part.description));
    Ok(files)
}

struct Tee {
    hasher: Sha256,
    packer: GzEncoder<Vec<u8>>,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.packer.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.packer.flush()
    }
}

fn read_archive(path: &Path) -> anyhow::Result<BundleRef> {
    struct Hashing<R>(R, Sha256);
    impl<R: io::Read> io::Read for Hashing<R> {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read(bytes)?;
            self.1.update(&bytes[..count]);
            Ok(count)
        }
    }
    let mut unpacked = Hashing(GzDecoder::new(BufReader::new(File::open(path)?)), Sha256::new());
    let (mut cpu, mut glibc, mut models) = (None, None, Vec::new());
    {
        let mut archive = tar::Archive::new(&mut unpacked);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let name = entry.path()?.to_string_lossy().into_owned();
            if name == PROGRAM {
                let mut program = Vec::new();
                entry.by_ref().take(MOST_PROGRAM_BYTES).read_to_end(&mut program)?;
                cpu = Some(Cpu::of_program(&program).context("its program is for an unknown processor")?);
                glibc = glibc.max(elf::needed_glibc(&program));
            } else if name.starts_with(LIBRARIES) {
                let mut library = Vec::new();
                entry.by_ref().take(MOST_PROGRAM_BYTES).read_to_end(&mut library)?;
                glibc = glibc.max(elf::needed_glibc(&library));
            }
            if let Some(folder) = name.strip_prefix(MODELS).and_then(|rest| rest.strip_suffix("/model.toml")) {
                models.push(folder.trim_start_matches('/').to_owned());
            }
        }
    }
    // The digest covers the bytes after the last entry too.
    io::copy(&mut unpacked, &mut io::sink())?;
    let cpu = cpu.with_context(|| format!("it does not contain {PROGRAM}"))?;
    Ok(BundleRef { digest: format!("{:x}", unpacked.1.finalize()), cpu, glibc, models })
}

/// The newest version of the GNU C library that one of the files needs.
fn glibc_of(files: &[&Path]) -> anyhow::Result<Option<Glibc>> {
    let mut newest = None;
    for file in files {
        let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
        newest = newest.max(elf::needed_glibc(&bytes));
    }
    Ok(newest)
}

fn cpu_of(program: &Path) -> anyhow::Result<Cpu> {
    let mut head = Vec::new();
    File::open(program)?.take(64).read_to_end(&mut head)?;
    Cpu::of_program(&head).with_context(|| {
        format!(
            "{} is not a Linux program for x86-64 or arm64, the processors of the machines; give --bundle FILE",
            program.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graviton_is_recognized_by_instance_type_name() {
        for name in ["c7g.large", "m6gd.medium", "t4g.small", "im4gn.large", "a1.medium", "c8gn.xlarge", "g5g.xlarge"] {
            assert_eq!(Cpu::of_instance_type(name), Cpu::Arm64, "{name}");
        }
        for name in ["c7i.large", "t3.small", "g5.xlarge", "g4dn.xlarge", "m7a.large", "c6id.large", "p4d.24xlarge"] {
            assert_eq!(Cpu::of_instance_type(name), Cpu::X86_64, "{name}");
        }
    }

    #[test]
    fn archives_are_reproducible_and_can_be_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let mut program = b"\x7fELF\x02\x01\x01".to_vec();
        program.resize(18, 0);
        program.extend([183, 0, 0, 0]);
        let files = vec![
            Entry::new(PROGRAM, 0o755, put("program", &program)),
            Entry::new(format!("{MODELS}/tiny/model.toml"), 0o644, put("model.toml", b"name = \"tiny\"")),
        ];
        let digest = archive::measure(&files).unwrap().digest;
        let reference = BundleRef { digest, cpu: Cpu::Arm64, glibc: None, models: vec!["tiny".to_owned()] };
        let bundle = Bundle { reference: reference.clone(), source: Source::Files(files) };
        let packed = put("bundle.tar.gz", &bundle.packed().unwrap());
        assert_eq!(Bundle::of_archive(&packed).unwrap().reference, reference);
        let error = Bundle::of_archive(&folder.path().join("program")).err().unwrap();
        assert!(format!("{error:#}").contains("is not a bundle"), "{error:#}");
    }
}

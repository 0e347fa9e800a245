//! Files that people take for images and that are not decoded: their names, and what to do instead.

/// A kind of file that is recognised in order to be refused by its name.
struct ForeignKind {
    /// Offset of the signature in the file.
    at: usize,
    signature: &'static [u8],
    /// Completes the sentence "the file is …".
    name: &'static str,
    advice: &'static str,
}

const fn kind(at: usize, signature: &'static [u8], name: &'static str, advice: &'static str) -> ForeignKind {
    ForeignKind { at, signature, name, advice }
}

const SAVE: &str = "save it as JPEG or PNG";
const EXTRACT_FRAMES: &str = "extract its frames first, for example by ffmpeg";
const UNPACK: &str = "unpack it and send the images in it";
const EXPORT_PAGES: &str = "export its pages as PNG or JPEG";
const DEVELOP: &str = "convert it to JPEG or TIFF, or send the JPEG that the camera stored beside it";

/// More specific signatures come first.
static KINDS: &[ForeignKind] = &[
    kind(0, b"%PDF-", "a PDF document", EXPORT_PAGES),
    kind(0, b"%!PS", "a PostScript document", EXPORT_PAGES),
    kind(0, b"\xc5\xd0\xd3\xc6", "an EPS drawing", "render it as PNG first"),
    kind(0, b"AT&TFORM", "a DjVu document", EXPORT_PAGES),
    kind(0, b"8BPS", "a Photoshop document", SAVE),
    kind(0, b"gimp xcf", "a GIMP document", SAVE),
    kind(0, b"\xd7\xcd\xc6\x9a", "a WMF drawing", "render it as PNG first"),
    kind(40, b" EMF", "an EMF drawing", "render it as PNG first"),
    kind(128, b"DICM", "a DICOM file", "convert it to PNG first, for example by dcm2img of DCMTK"),
    kind(0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "export its images as PNG or TIFF"),
    kind(0, b"SIMPLE  =", "a FITS file", "export its images as PNG or TIFF"),
    kind(0, b"NRRD000", "an NRRD file", "export its images as PNG or TIFF"),
    kind(0, b"\x76\x2f\x31\x01", "an OpenEXR image", SAVE),
    kind(0, b"#?RADIANCE", "a Radiance HDR image", SAVE),
    kind(0, b"#?RGBE", "a Radiance HDR image", SAVE),
    kind(0, b"DDS ", "a DDS texture", SAVE),
    kind(0, b"\xabKTX ", "a KTX texture", SAVE),
    kind(0, b"qoif", "a QOI image", SAVE),
    kind(0, b"farbfeld", "a farbfeld image", SAVE),
    kind(0, b"FLIF", "a FLIF image", SAVE),
    kind(0, b"BPG\xfb", "a BPG image", SAVE),
    kind(0, b"icns", "a macOS icon", SAVE),
    kind(0, b"\x00\x00\x02\x00", "a cursor or a TGA image", SAVE),
    kind(0, b"\x8aMNG\r\n\x1a\n", "an MNG animation", "save a frame as PNG"),
    kind(0, b"\x8bJNG\r\n\x1a\n", "a JNG image", SAVE),
    kind(0, b"\x57\xcc\xbc\x00", "a JPEG XR image", SAVE),
    kind(0, b"II\xbc\x01", "a JPEG XR image", SAVE),
    kind(0, b"P1\n", "a Netpbm image", SAVE),
    kind(0, b"P2\n", "a Netpbm image", SAVE),
    kind(0, b"P3\n", "a Netpbm image", SAVE),
    kind(0, b"P4\n", "a Netpbm image", SAVE),
    kind(0, b"P5\n", "a Netpbm image", SAVE),
    kind(0, b"P6\n", "a Netpbm image", SAVE),
    kind(0, b"P7\n", "a Netpbm image", SAVE),
    kind(0, b"/* XPM */", "an XPM image", SAVE),
    kind(0, b"\x0a\x05\x01\x08", "a PCX image", SAVE),
    kind(0, b"\x01\xda\x01\x01", "an SGI image", SAVE),
    kind(0, b"\x59\xa6\x6a\x95", "a Sun raster image", SAVE),
    kind(0, b"FOVb", "a camera raw image (X3F)", DEVELOP),
    kind(0, b"\x00MRM", "a camera raw image (MRW)", DEVELOP),
    kind(6, b"HEAPCCDR", "a camera raw image (CRW)", DEVELOP),
    kind(4, b"ftypqt  ", "a QuickTime video", EXTRACT_FRAMES),
    kind(4, b"ftypM4A ", "an audio file", "send an image"),
    kind(4, b"ftyp", "a video (MP4)", EXTRACT_FRAMES),
    kind(4, b"moov", "a QuickTime video", EXTRACT_FRAMES),
    kind(4, b"mdat", "a QuickTime video", EXTRACT_FRAMES),
    kind(0, b"\x1aE\xdf\xa3", "a video (Matroska or WebM)", EXTRACT_FRAMES),
    kind(8, b"AVI ", "a video (AVI)", EXTRACT_FRAMES),
    kind(0, b"FLV\x01", "a video (FLV)", EXTRACT_FRAMES),
    kind(0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video (WMV)", EXTRACT_FRAMES),
    kind(0, b"\x00\x00\x01\xba", "a video (MPEG)", EXTRACT_FRAMES),
    kind(0, b"\x00\x00\x01\xb3", "a video (MPEG)", EXTRACT_FRAMES),
    kind(0, b"OggS", "an Ogg file", EXTRACT_FRAMES),
    kind(8, b"WAVE", "an audio file", "send an image"),
    kind(0, b"ID3", "an audio file", "send an image"),
    kind(0, b"fLaC", "an audio file", "send an image"),
    kind(0, b"PK\x03\x04", "a ZIP archive or an Office document", UNPACK),
    kind(0, b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    kind(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    kind(0, b"\x1f\x8b", "compressed by gzip", UNPACK),
    kind(0, b"BZh", "compressed by bzip2", UNPACK),
    kind(0, b"\xfd7zXZ\x00", "compressed by xz", UNPACK),
    kind(0, b"\x28\xb5\x2f\xfd", "compressed by Zstandard", UNPACK),
    kind(257, b"ustar", "a tar archive", UNPACK),
    kind(0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", EXPORT_PAGES),
    kind(0, b"\x00\x05\x16\x07", "metadata of macOS (AppleDouble)", "send the file of the same name without ._"),
    kind(0, b"version https://git-lfs", "a Git LFS pointer", "fetch the image by git lfs pull"),
    kind(0, b"\x7fELF", "a program", "send an image"),
];

/// How much of a text is searched for the root element of a drawing or a page.
const MARKUP_BYTES: usize = 1024;

/// Says what a file is and what to do, if it is of a known kind that is not decoded: "a PDF document; export …". The
/// first 300 bytes are enough for every kind except drawings and pages with a long prologue.
pub fn foreign_kind(start: &[u8]) -> Option<String> {
    let has_signature = |kind: &&ForeignKind| start.get(kind.at..).is_some_and(|rest| rest.starts_with(kind.signature));
    if let Some(ForeignKind { name, advice, .. }) = KINDS.iter().find(has_signature) {
        return Some(format!("{name}; {advice}"));
    }
    markup(start)
}

/// The kind of a text that begins like XML or HTML.
fn markup(start: &[u8]) -> Option<String> {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    if !text.starts_with(b"<") {
        return None;
    }
    let text = text[..text.len().min(MARKUP_BYTES)].to_ascii_lowercase();
    let has = |element: &[u8]| memchr::memmem::find(&text, element).is_some();
    if has(b"<svg") || has(b"<!doctype svg") {
        Some("an SVG drawing; render it as PNG first".to_owned())
    } else if has(b"<html") || has(b"<!doctype html") {
        Some("an HTML page, perhaps the error page of a download; send the image itself".to_owned())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_kinds_are_named() {
        let of = |start: &[u8]| foreign_kind(start).unwrap_or_default();
        assert_eq!(of(b"%PDF-1.7\n"), "a PDF document; export its pages as PNG or JPEG");
        assert!(of(b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg xmlns='x'>").starts_with("an SVG drawing"));
        assert!(of(b"\xef\xbb\xbf\n<SVG/>").starts_with("an SVG drawing"));
        assert!(of(b"<!DOCTYPE html>").starts_with("an HTML page"));
        assert!(of(b"\0\0\0\x18ftypisom").starts_with("a video (MP4)"));
        assert!(of(b"FOVb\0\0\x02\0").starts_with("a camera raw image (X3F)"));
        assert!(of(b"RIFF\0\0\0\0AVI LIST").starts_with("a video (AVI)"));
        let dicom = [&[0; 128], b"DICM".as_slice()].concat();
        assert!(of(&dicom).starts_with("a DICOM file"));
    }

    #[test]
    fn unknown_files_have_no_name() {
        for start in [&b""[..], b"hello", b"<", b"<note>svg</note>", b"a,b\n1,2\n", &[0; 300]] {
            assert_eq!(foreign_kind(start), None, "{start:?}");
        }
    }
}

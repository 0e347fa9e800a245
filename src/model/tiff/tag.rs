//! The numbers of the tags that are read.

pub(super) const NEW_SUBFILE_TYPE: u16 = 254;
pub(super) const IMAGE_WIDTH: u16 = 256;
pub(super) const IMAGE_LENGTH: u16 = 257;
pub(super) const BITS_PER_SAMPLE: u16 = 258;
pub(super) const COMPRESSION: u16 = 259;
pub(super) const PHOTOMETRIC: u16 = 262;
pub(super) const FILL_ORDER: u16 = 266;
pub(super) const STRIP_OFFSETS: u16 = 273;
pub(super) const ORIENTATION: u16 = 274;
pub(super) const SAMPLES_PER_PIXEL: u16 = 277;
pub(super) const ROWS_PER_STRIP: u16 = 278;
pub(super) const STRIP_BYTE_COUNTS: u16 = 279;
pub(super) const PLANAR_CONFIGURATION: u16 = 284;
pub(super) const GROUP3_OPTIONS: u16 = 292;
pub(super) const PREDICTOR: u16 = 317;
pub(super) const COLOR_MAP: u16 = 320;
pub(super) const TILE_WIDTH: u16 = 322;
pub(super) const TILE_LENGTH: u16 = 323;
pub(super) const TILE_OFFSETS: u16 = 324;
pub(super) const TILE_BYTE_COUNTS: u16 = 325;
pub(super) const SUB_DIRECTORIES: u16 = 330;
pub(super) const INK_SET: u16 = 332;
pub(super) const EXTRA_SAMPLES: u16 = 338;
pub(super) const SAMPLE_FORMAT: u16 = 339;
pub(super) const JPEG_TABLES: u16 = 347;
pub(super) const JPEG_INTERCHANGE: u16 = 513;
pub(super) const JPEG_INTERCHANGE_LENGTH: u16 = 514;
pub(super) const YCBCR_SUBSAMPLING: u16 = 530;
pub(super) const EXIF_DIRECTORY: u16 = 34_665;
pub(super) const MAKER_NOTE: u16 = 37_500;
pub(super) const DNG_VERSION: u16 = 50_706;
/// In files of Panasonic; no tag of TIFF.
pub(super) const PANASONIC_PREVIEW: u16 = 46;
/// In the maker note of Olympus: the directory of the settings, and in that one where the preview is.
pub(super) const OLYMPUS_SETTINGS: u16 = 0x2020;
pub(super) const OLYMPUS_PREVIEW: u16 = 0x0101;
pub(super) const OLYMPUS_PREVIEW_LENGTH: u16 = 0x0102;

//! The items of a HEIF file (ISO/IEC 23008-12): images, how they are coded, and how they are derived from each other.

use std::borrow::Cow;
use std::collections::HashMap;

use super::boxes::Reader;

/// Maximum number of items. Photographs of 200 megapixels have about 800 tiles.
const MAX_ITEMS: usize = 16_384;

/// Maximum number of properties in total and of one item.
const MAX_PROPERTIES: usize = 16_384;
const MAX_ITEM_PROPERTIES: usize = 64;

/// The content of the `meta` box, and the file that it describes.
pub(super) struct Container<'a> {
    file: &'a [u8],
    /// The data that are stored in the `meta` box.
    idat: &'a [u8],
    pub primary: u32,
    kinds: HashMap<u32, [u8; 4]>,
    locations: HashMap<u32, Location>,
    /// Type and content of each property. Items refer to them by their index.
    properties: Vec<([u8; 4], Reader<'a>)>,
    item_properties: HashMap<u32, Vec<u16>>,
    references: Vec<Reference>,
}

struct Location {
    is_in_idat: bool,
    /// Offset and length; a length of 0 extends to the end.
    extents: Vec<(u64, u64)>,
}

/// A reference from one item to others.
struct Reference {
    kind: [u8; 4],
    from: u32,
    to: Vec<u32>,
}

impl<'a> Container<'a> {
    /// Reads the `meta` box. Returns `None` when there is none, or when it is damaged.
    pub(super) fn read(file: &'a [u8]) -> Option<Container<'a>> {
        let mut meta = Reader(file).find(*b"meta")?;
        meta.version()?;
        let mut container = Container {
            file,
            idat: meta.find(*b"idat").map_or(&[], |idat| idat.0),
            primary: primary(meta.find(*b"pitm")?)?,
            kinds: kinds(meta.find(*b"iinf")?)?,
            locations: locations(meta.find(*b"iloc")?)?,
            properties: Vec::new(),
            item_properties: HashMap::new(),
            references: meta.find(*b"iref").map_or(Some(Vec::new()), references)?,
        };
        if let Some(properties) = meta.find(*b"iprp") {
            container.properties = properties.find(*b"ipco")?.boxes().take(MAX_PROPERTIES).collect();
            for (kind, associations) in properties.boxes() {
                if kind == *b"ipma" {
                    read_associations(associations, &mut container.item_properties)?;
                }
            }
        }
        Some(container)
    }

    /// The type of an item: how its image is coded or derived.
    pub(super) fn kind(&self, item: u32) -> Option<[u8; 4]> {
        self.kinds.get(&item).copied()
    }

    /// Type and content of the properties of an item, in the order in which they apply.
    pub(super) fn properties(&self, item: u32) -> impl Iterator<Item = ([u8; 4], Reader<'a>)> {
        let indices = self.item_properties.get(&item).map_or(&[][..], Vec::as_slice);
        // Index 0 means that there is no property.
        indices.iter().filter_map(|&index| self.properties.get(usize::from(index).checked_sub(1)?).copied())
    }

    pub(super) fn property(&self, item: u32, wanted: [u8; 4]) -> Option<Reader<'a>> {
        self.properties(item).find_map(|(kind, content)| (kind == wanted).then_some(content))
    }

    /// Width and height of an item.
    pub(super) fn size(&self, item: u32) -> Option<(u32, u32)> {
        let mut size = self.property(item, *b"ispe")?;
        size.version()?;
        Some((size.u32()?, size.u32()?))
    }

    /// The items that an item refers to, in order.
    pub(super) fn targets(&self, item: u32, kind: [u8; 4]) -> &[u32] {
        let found = self.references.iter().find(|reference| reference.kind == kind && reference.from == item);
        found.map_or(&[], |reference| &reference.to)
    }

    /// The items that refer to an item.
    pub(super) fn sources(&self, item: u32, kind: [u8; 4]) -> impl Iterator<Item = u32> {
        let refers = move |reference: &&Reference| reference.kind == kind && reference.to.contains(&item);
        self.references.iter().filter(refers).map(|reference| reference.from)
    }

    /// The data of an item. Returns `None` when a part of them lies outside the file, or when the parts together are
    /// longer than the file.
    pub(super) fn data(&self, item: u32) -> Option<Cow<'a, [u8]>> {
        let Location { is_in_idat, extents } = self.locations.get(&item)?;
        let source = if *is_in_idat { self.idat } else { self.file };
        let part = |&(offset, length): &(u64, u64)| {
            let rest = source.get(usize::try_from(offset).ok()?..)?;
            if length == 0 { Some(rest) } else { rest.get(..usize::try_from(length).ok()?) }
        };
        if let [extent] = extents.as_slice() {
            return part(extent).map(Cow::Borrowed);
        }
        let mut data = Vec::new();
        for extent in extents {
            data.extend_from_slice(part(extent)?);
            if data.len() > self.file.len() {
                return None;
            }
        }
        Some(Cow::Owned(data))
    }
}

fn primary(mut content: Reader) -> Option<u32> {
    let (version, _) = content.version()?;
    if version == 0 { content.u16().map(u32::from) } else { content.u32() }
}

fn kinds(mut content: Reader) -> Option<HashMap<u32, [u8; 4]>> {
    let (version, _) = content.version()?;
    content.number(if version == 0 { 2 } else { 4 })?;
    let mut kinds = HashMap::new();
    for (kind, mut entry) in content.boxes() {
        if kind != *b"infe" {
            continue;
        }
        let (version, _) = entry.version()?;
        // Versions before 2 describe files, not images.
        if version < 2 {
            continue;
        }
        let id = entry.number(if version == 2 { 2 } else { 4 })? as u32;
        entry.u16()?;
        kinds.insert(id, entry.kind()?);
        if kinds.len() > MAX_ITEMS {
            return None;
        }
    }
    Some(kinds)
}

fn locations(mut content: Reader) -> Option<HashMap<u32, Location>> {
    let (version, _) = content.version()?;
    let sizes = content.u16()?;
    let [offset_bytes, length_bytes, base_bytes, index_bytes] =
        [12, 8, 4, 0].map(|shift| usize::from(sizes >> shift & 15));
    if [offset_bytes, length_bytes, base_bytes, index_bytes].iter().any(|bytes| *bytes > 8) {
        return None;
    }
    let count = content.number(if version < 2 { 2 } else { 4 })?;
    let mut locations = HashMap::new();
    for _ in 0..count {
        let id = content.number(if version < 2 { 2 } else { 4 })? as u32;
        let method = if version == 0 { 0 } else { content.u16()? & 15 };
        let reference = content.u16()?;
        let base = content.number(base_bytes)?;
        let mut extents = Vec::new();
        for _ in 0..content.u16()? {
            if version > 0 {
                content.number(index_bytes)?;
            }
            let offset = content.number(offset_bytes)?;
            let length = content.number(length_bytes)?;
            extents.push((base.checked_add(offset)?, length));
        }
        // Data in other files, or in other items, are not found.
        if reference == 0 && method < 2 {
            locations.insert(id, Location { is_in_idat: method == 1, extents });
        }
        if locations.len() > MAX_ITEMS {
            return None;
        }
    }
    Some(locations)
}

fn references(mut content: Reader) -> Option<Vec<Reference>> {
    let (version, _) = content.version()?;
    let id_bytes = if version == 0 { 2 } else { 4 };
    let mut references = Vec::new();
    for (kind, mut entry) in content.boxes() {
        let from = entry.number(id_bytes)? as u32;
        let count = entry.u16()?;
        let to = (0..count).map(|_| entry.number(id_bytes).map(|id| id as u32)).collect::<Option<Vec<u32>>>()?;
        references.push(Reference { kind, from, to });
        if references.len() > MAX_ITEMS {
            return None;
        }
    }
    Some(references)
}

fn read_associations(mut content: Reader, items: &mut HashMap<u32, Vec<u16>>) -> Option<()> {
    let (version, flags) = content.version()?;
    for _ in 0..content.u32()? {
        let id = content.number(if version == 0 { 2 } else { 4 })? as u32;
        let count = usize::from(content.u8()?);
        if count > MAX_ITEM_PROPERTIES || items.len() >= MAX_ITEMS {
            return None;
        }
        // The highest bit marks a property that is essential.
        let index = |content: &mut Reader| {
            if flags & 1 == 1 {
                content.u16().map(|index| index & 0x7fff)
            } else {
                content.u8().map(|index| u16::from(index & 0x7f))
            }
        };
        let indices = (0..count).map(|_| index(&mut content)).collect::<Option<Vec<u16>>>()?;
        items.insert(id, indices);
    }
    Some(())
}

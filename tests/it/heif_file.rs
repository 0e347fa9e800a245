//! Writes HEIF files of any structure from the coded image of another file.

/// A coded image: what an encoder wrote into a HEIF file of one image.
#[derive(Clone)]
pub struct Coded {
    /// `hvc1` or `av01`.
    pub kind: [u8; 4],
    /// The properties with the configuration of the decoder and with the colours, as boxes.
    configuration: Vec<u8>,
    colours: Option<Vec<u8>>,
    data: Vec<u8>,
    size: (u32, u32),
}

/// An image of the file that is written, or a part of it.
pub struct Item {
    pub kind: [u8; 4],
    pub data: Vec<u8>,
    /// Boxes.
    pub properties: Vec<Vec<u8>>,
}

/// A reference from one item to others, by their numbers from 1.
pub type Reference = ([u8; 4], u16, Vec<u16>);

pub fn boxed(kind: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    [&(content.len() as u32 + 8).to_be_bytes(), kind, &content].concat()
}

/// The box with the size of an image.
pub fn size_box(width: u32, height: u32) -> Vec<u8> {
    boxed(b"ispe", &[&[0; 4], &width.to_be_bytes(), &height.to_be_bytes()])
}

impl Coded {
    /// Takes the coded image out of a file with one image.
    pub fn of(file: &[u8]) -> Coded {
        let is_hevc = find(file, b"hvcC").is_some();
        let kind = if is_hevc { *b"hvc1" } else { *b"av01" };
        let configuration = find(file, if is_hevc { b"hvcC" } else { b"av1C" }).unwrap();
        let size = find(file, b"ispe").unwrap();
        let number = |at: usize| u32::from_be_bytes(size[at..at + 4].try_into().unwrap());
        let data = find(file, b"mdat").unwrap();
        Coded {
            kind,
            configuration: configuration.to_vec(),
            colours: find(file, b"colr").map(<[u8]>::to_vec),
            data: data[8..].to_vec(),
            size: (number(12), number(16)),
        }
    }

    pub fn item(&self) -> Item {
        let mut properties = vec![self.configuration.clone(), size_box(self.size.0, self.size.1)];
        properties.extend(self.colours.clone());
        Item { kind: self.kind, data: self.data.clone(), properties }
    }
}

impl Item {
    pub fn with(mut self, property: Vec<u8>) -> Item {
        self.properties.push(property);
        self
    }
}

/// A grid of equal tiles.
pub fn grid(rows: u8, columns: u8, width: u16, height: u16) -> Item {
    let sizes = [width.to_be_bytes(), height.to_be_bytes()].concat();
    Item {
        kind: *b"grid",
        data: [&[0, 0, rows - 1, columns - 1], sizes.as_slice()].concat(),
        properties: vec![size_box(width.into(), height.into())],
    }
}

/// A box with its header, searched by its type.
fn find<'a>(file: &'a [u8], kind: &[u8]) -> Option<&'a [u8]> {
    let at = file.windows(4).position(|window| window == kind)?.checked_sub(4)?;
    let length = u32::from_be_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    file.get(at..if length == 0 { file.len() } else { at + length })
}

/// A file whose main image is the item `primary`. Items are numbered from 1.
pub fn heif(brand: &[u8], items: &[Item], primary: u16, references: &[Reference]) -> Vec<u8> {
    let start = boxed(b"ftyp", &[brand, &[0; 4], b"mif1"]);
    let data: Vec<u8> = items.iter().flat_map(|item| item.data.iter().copied()).collect();
    let mut offset = start.len() + 8;
    let (mut entries, mut locations, mut properties, mut associations) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut last_property = 0_u8;
    for (item, id) in items.iter().zip(1_u16..) {
        entries.extend(boxed(b"infe", &[&[2, 0, 0, 0], &id.to_be_bytes(), &[0, 0], &item.kind, &[0]]));
        locations.extend([id.to_be_bytes(), [0, 0], [0, 1]].concat());
        locations.extend([offset as u32, item.data.len() as u32].map(u32::to_be_bytes).concat());
        offset += item.data.len();
        associations.extend(id.to_be_bytes());
        associations.push(item.properties.len() as u8);
        for property in &item.properties {
            last_property += 1;
            properties.extend_from_slice(property);
            associations.push(last_property);
        }
    }
    let count = (items.len() as u16).to_be_bytes();
    let references: Vec<u8> = references
        .iter()
        .flat_map(|(kind, from, to)| {
            let to: Vec<u8> = to.iter().flat_map(|id| id.to_be_bytes()).collect();
            boxed(kind, &[&from.to_be_bytes(), &(to.len() as u16 / 2).to_be_bytes(), &to])
        })
        .collect();
    let wide_count = (items.len() as u32).to_be_bytes();
    let meta = boxed(
        b"meta",
        &[
            &[0; 4],
            &boxed(b"hdlr", &[&[0; 8], b"pict", &[0; 13]]),
            &boxed(b"pitm", &[&[0; 4], &primary.to_be_bytes()]),
            &boxed(b"iinf", &[&[0; 4], &count, &entries]),
            &boxed(b"iref", &[&[0; 4], &references]),
            &boxed(
                b"iprp",
                &[&boxed(b"ipco", &[&properties]), &boxed(b"ipma", &[&[0; 4], &wide_count, &associations])],
            ),
            &boxed(b"iloc", &[&[0, 0, 0, 0, 0x44, 0], &count, &locations]),
        ],
    );
    [start, boxed(b"mdat", &[&data]), meta].concat()
}

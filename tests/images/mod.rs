//! Small images of every kind, built byte by byte, for the tests and the fuzz target of the
//! loaders.
#![allow(dead_code)] // each test uses its own part

/// One ELF program header to be.
#[derive(Clone, Debug)]
pub struct Segment {
    pub kind: u32,
    pub virt: u64,
    pub phys: u64,
    pub bytes: Vec<u8>,
    pub len: u64,
}

pub const PT_LOAD: u32 = 1;
pub const PT_DYNAMIC: u32 = 2;
pub const PT_INTERP: u32 = 3;
pub const PT_NOTE: u32 = 4;

impl Segment {
    /// PT_LOAD with `bytes` and as many zeroes as make `len`.
    pub fn load(virt: u64, phys: u64, bytes: &[u8], len: u64) -> Self {
        Self { kind: PT_LOAD, virt, phys, bytes: bytes.to_vec(), len }
    }

    pub fn other(kind: u32, bytes: &[u8]) -> Self {
        Self { kind, virt: 0, phys: 0, bytes: bytes.to_vec(), len: bytes.len() as u64 }
    }

    pub fn note(owner: &str, kind: u32, descriptor: &[u8]) -> Self {
        let mut owner = [owner.as_bytes(), &[0]].concat();
        let mut bytes = Vec::new();
        for word in [owner.len() as u32, descriptor.len() as u32, kind] {
            bytes.extend(word.to_le_bytes());
        }
        owner.resize(owner.len().next_multiple_of(4), 0);
        bytes.extend(owner);
        bytes.extend(descriptor);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        Self::other(PT_NOTE, &bytes)
    }
}

pub const ET_EXEC: u16 = 2;
pub const ET_DYN: u16 = 3;

fn ident(class: u8) -> Vec<u8> {
    let mut image = b"\x7FELF".to_vec();
    image.extend([class, 1, 1]);
    image.resize(16, 0);
    image
}

/// An ELF64 file for x86-64: header, program headers, bytes in order.
pub fn elf64(kind: u16, entry: u64, segments: &[Segment]) -> Vec<u8> {
    let mut image = ident(2);
    image.extend(kind.to_le_bytes());
    image.extend(62_u16.to_le_bytes());
    image.extend(1_u32.to_le_bytes());
    for word in [entry, 64, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0_u32.to_le_bytes());
    for half in [64, 56, segments.len() as u16, 64, 0, 0] {
        image.extend(u16::to_le_bytes(half));
    }
    let mut offset = 64 + 56 * segments.len() as u64;
    for s in segments {
        image.extend(s.kind.to_le_bytes());
        image.extend(7_u32.to_le_bytes());
        for word in [offset, s.virt, s.phys, s.bytes.len() as u64, s.len, 4] {
            image.extend(word.to_le_bytes());
        }
        offset += s.bytes.len() as u64;
    }
    segments.iter().for_each(|s| image.extend(&s.bytes));
    image
}

/// An ELF32 file for the 80386.
pub fn elf32(kind: u16, entry: u32, segments: &[Segment]) -> Vec<u8> {
    let mut image = ident(1);
    image.extend(kind.to_le_bytes());
    image.extend(3_u16.to_le_bytes());
    for word in [1, entry, 52, 0, 0] {
        image.extend(u32::to_le_bytes(word));
    }
    for half in [52, 32, segments.len() as u16, 40, 0, 0] {
        image.extend(u16::to_le_bytes(half));
    }
    let mut offset = 52 + 32 * segments.len() as u32;
    for s in segments {
        let len = s.bytes.len() as u32;
        for word in [s.kind, offset, s.virt as u32, s.phys as u32, len, s.len as u32, 7, 4] {
            image.extend(word.to_le_bytes());
        }
        offset += len;
    }
    segments.iter().for_each(|s| image.extend(&s.bytes));
    image
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A multiboot 1 header.
pub fn multiboot_header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let magic = 0x1BAD_B002_u32;
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    [words(&[magic, flags, checksum]), words(addresses)].concat()
}

/// A multiboot 2 header with an end tag after `tags`: type, flags, words of the body.
pub fn multiboot2_header(tags: &[(u16, u16, &[u32])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, flags, values) in tags.iter().chain(&[(0, 0, &[][..])]) {
        body.extend(kind.to_le_bytes());
        body.extend(flags.to_le_bytes());
        body.extend((8 + 4 * values.len() as u32).to_le_bytes());
        body.extend(words(values));
        body.resize(body.len().next_multiple_of(8), 0);
    }
    let (magic, length) = (0xE852_50D6_u32, 16 + body.len() as u32);
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(length);
    [words(&[magic, 0, length, checksum]), body].concat()
}

/// Adds a section table to an ELF file: a null section, a symbol table of `symbols`, a
/// string table of `strings`.
pub fn with_sections(mut image: Vec<u8>, symbols: &[u8], strings: &[u8]) -> Vec<u8> {
    let is_64 = image[4] == 2;
    let data = image.len() as u64;
    image.extend(symbols);
    image.extend(strings);
    let table = image.len() as u64;
    let second = data + symbols.len() as u64;
    let sections = [(0, 0, 0), (2, data, symbols.len() as u64), (3, second, strings.len() as u64)];
    for (kind, offset, len) in sections {
        image.extend(words(&[0, kind]));
        if is_64 {
            // flags, address, offset, size; link and info; alignment, entry size
            for value in [0, 0, offset, len, 0, 0, 0] {
                image.extend(u64::to_le_bytes(value));
            }
        } else {
            image.extend(words(&[0, 0, offset as u32, len as u32, 0, 0, 0, 0]));
        }
    }
    let (at, rest, size) = if is_64 { (0x28, 0x3A, 64) } else { (0x20, 0x2E, 40) };
    image[at..at + 4].copy_from_slice(&(table as u32).to_le_bytes());
    for (i, half) in [size, 3_u16, 2].into_iter().enumerate() {
        image[rest + 2 * i..rest + 2 * i + 2].copy_from_slice(&half.to_le_bytes());
    }
    image
}

/// 512 bytes that end in 55 AA.
pub fn boot_sector() -> Vec<u8> {
    let mut sector = vec![0xF4; 510];
    sector.extend([0x55, 0xAA]);
    sector
}

/// A bzImage to be: what the loader looks at.
#[derive(Clone, Debug)]
pub struct BzImage {
    pub setup_sectors: u8,
    pub version: u16,
    pub load_flags: u8,
    pub code32_start: u32,
    pub initrd_max: u32,
    pub alignment: u32,
    pub relocatable: u8,
    pub xload_flags: u16,
    pub cmdline_size: u32,
    pub pref_address: u64,
    pub init_size: u32,
    pub kernel: Vec<u8>,
}

impl BzImage {
    /// A relocatable kernel with both entries, as today's are.
    pub fn modern() -> Self {
        Self {
            setup_sectors: 2,
            version: 0x20F,
            load_flags: 1,
            code32_start: 0x10_0000,
            initrd_max: 0x7FFF_FFFF,
            alignment: 0x20_0000,
            relocatable: 1,
            xload_flags: 0x7F,
            cmdline_size: 2047,
            pref_address: 0x100_0000,
            init_size: 0x10_0000,
            kernel: vec![0xF4; 0x1000],
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let sectors = if self.setup_sectors == 0 { 4 } else { usize::from(self.setup_sectors) };
        let mut image = vec![0; 512 * (sectors + 1)];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1F1, &[self.setup_sectors]);
        put(0x1F4, &(self.kernel.len() as u32).div_ceil(16).to_le_bytes());
        put(0x1FE, &[0x55, 0xAA, 0xEB, 0x6A]);
        put(0x202, b"HdrS");
        put(0x206, &self.version.to_le_bytes());
        put(0x211, &[self.load_flags | 0x80]);
        put(0x214, &self.code32_start.to_le_bytes());
        put(0x22C, &self.initrd_max.to_le_bytes());
        put(0x230, &self.alignment.to_le_bytes());
        put(0x234, &[self.relocatable]);
        put(0x236, &self.xload_flags.to_le_bytes());
        put(0x238, &self.cmdline_size.to_le_bytes());
        put(0x258, &self.pref_address.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        image.extend(&self.kernel);
        image
    }
}

/// One good image of each kind.
pub fn one_of_each() -> Vec<Vec<u8>> {
    const MIB: u64 = 1 << 20;
    let link = 0xFFFF_FFFF_8000_0000;
    let hlt = [0xF4; 64];
    let with = |header: Vec<u8>| [header, hlt.to_vec()].concat();
    let note = |owner: &str, kind| Segment::note(owner, kind, &(MIB as u32).to_le_bytes());
    let dynamic: Vec<u8> =
        [7_u64, 0x40, 8, 24, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let rela: Vec<u8> = [8_u64, 8, 16].iter().flat_map(|word| word.to_le_bytes()).collect();
    let pie = [hlt.to_vec(), rela].concat();
    let addresses = [0x20_0000, 0x20_0000, 0, 0x20_1000, 0x20_0020];
    let tags: &[(u16, u16, &[u32])] =
        &[(1, 0, &[1, 6]), (2, 0, &[0x20_0000, u32::MAX, 0, 0]), (3, 0, &[0x20_0008])];
    let higher = Segment::load(link + MIB, MIB, &with(multiboot2_header(&[])), 0x30_0000);
    let low = |bytes: &[u8]| Segment::load(MIB, MIB, bytes, 0x2000);
    vec![
        boot_sector(),
        elf64(ET_EXEC, link + MIB, &[Segment::load(link + MIB, MIB, &hlt, 0x3000)]),
        elf64(ET_EXEC, 0x50_0000, &[Segment::load(0x50_0000, MIB, &hlt, 0x40_0000)]),
        elf64(ET_DYN, 0, &[Segment::load(0, 0, &pie, 0x100), Segment::other(PT_DYNAMIC, &dynamic)]),
        elf32(ET_EXEC, MIB as u32, &[low(&hlt), Segment::load(2 * MIB, 2 * MIB, &[1; 5], 5)]),
        elf64(ET_EXEC, MIB, &[low(&hlt), note("Xen", 18)]),
        elf64(ET_EXEC, MIB, &[low(&hlt), note("Linux", 1)]),
        elf32(ET_EXEC, MIB as u32, &[low(&with(multiboot_header(3, &[])))]),
        with(multiboot_header(1 << 16, &addresses)),
        with_sections(elf64(ET_EXEC, link + MIB, &[higher]), &[1; 48], b"\0name\0"),
        with(multiboot2_header(tags)),
        BzImage::modern().bytes(),
        BzImage { xload_flags: 0, relocatable: 0, ..BzImage::modern() }.bytes(),
    ]
}

/// What has to hold of everything that was loaded.
pub fn check_loaded(loaded: &ringfence::boot::Loaded, map: &ringfence::mem::MemoryMap) {
    let mut end = 0;
    for placed in &loaded.placed {
        let range = placed.range;
        assert!(range.start >= end && !range.is_empty(), "not ascending: {loaded:?}");
        assert!(map.has_ram(&range), "not in RAM: {loaded:?}");
        end = range.end;
    }
    let cpu = &loaded.cpu;
    if cpu.mode != ringfence::x86::Mode::Long {
        let entry = cpu.cs.base + cpu.regs.rip;
        let holds = |p: &&ringfence::boot::Placed| p.range.start <= entry && entry < p.range.end;
        assert!(loaded.placed.iter().any(|p| holds(&p)), "enters nothing: {loaded:?}");
    }
}

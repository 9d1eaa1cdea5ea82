//! Whatever an image holds, loading it ends: in an error, or with everything in RAM and
//! nothing on top of another.

mod images;

use images::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use ringfence::boot::{self, Module, Protocol, Request};
use ringfence::mem::{self, MemoryMap};
use ringfence::x86::Mode;

const RAM: u64 = 32 << 20;

/// What goes with an image.
#[derive(Clone, Debug)]
struct Company {
    protocol: Option<Protocol>,
    entry: Option<Mode>,
    load_address: Option<u64>,
    cmdline: String,
    modules: Vec<usize>,
    initrd: Option<usize>,
}

/// Loads `image`; checks what came of it.
fn check(image: &[u8], company: &Company) -> bool {
    let (map, memory) = (MemoryMap::new(RAM), mem::create(RAM).unwrap());
    let zeroes = vec![0; RAM as usize];
    let modules: Vec<_> = company
        .modules
        .iter()
        .map(|&len| Module { data: &zeroes[..len], cmdline: &company.cmdline })
        .collect();
    let request = Request {
        protocol: company.protocol,
        entry: company.entry,
        load_address: company.load_address,
        cmdline: &company.cmdline,
        modules: &modules,
        initrd: company.initrd.map(|len| &zeroes[..len]),
        ..Request::new(image, &map, &memory)
    };
    let _ = boot::probe(image);
    match boot::load(&request) {
        Ok(loaded) => {
            check_loaded(&loaded, &map);
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && !text.contains('\n'), "{text}");
            false
        }
    }
}

/// Numbers that loaders trip over.
fn number() -> impl Strategy<Value = u64> {
    let edges = [0, 1, 0x1000, 0x7C00, 0x8_0000, 1 << 20, RAM, 0xC000_0000, 1 << 32, 1 << 47];
    let edges = edges.into_iter().chain([1 << 63, 0xFFFF_FFFF_8000_0000, u64::MAX]);
    let near = (select(edges.collect::<Vec<_>>()), -0x1010_i64..0x1010, any::<bool>());
    prop_oneof![
        8 => near.prop_map(|(edge, off, exact)| {
            if exact { edge } else { edge.wrapping_add_signed(off) }
        }),
        4 => 0..RAM,
        1 => any::<u64>(),
    ]
}

fn company() -> impl Strategy<Value = Company> {
    let protocols = [
        Protocol::Flat,
        Protocol::Elf,
        Protocol::Multiboot,
        Protocol::Multiboot2,
        Protocol::Pvh,
        Protocol::Linux,
    ];
    let rarely = |strategy| proptest::option::weighted(0.1, strategy);
    let len = || prop_oneof![9 => 0..20_000_usize, 1 => 0..RAM as usize];
    (
        rarely(select(protocols.to_vec())),
        proptest::option::weighted(0.1, select(vec![Mode::Real, Mode::Protected, Mode::Long])),
        proptest::option::weighted(0.05, number()),
        prop_oneof![9 => "[a-z =]{0,40}", 1 => "\\PC{0,3000}"],
        vec(len(), 0..3),
        proptest::option::of(len()),
    )
        .prop_map(|(protocol, entry, load_address, cmdline, modules, initrd)| Company {
            protocol,
            entry,
            load_address,
            cmdline,
            modules,
            initrd,
        })
}

/// Puts numbers over the fields of an image, and cuts it.
fn damage(mut image: Vec<u8>, edits: &[(Index, u64, usize)], cut: Option<Index>) -> Vec<u8> {
    for (at, value, size) in edits {
        let head = image.len().min(1024);
        let at = at.index(head) & !1;
        let end = (at + size).min(image.len());
        image[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
    }
    if let Some(cut) = cut {
        image.truncate(cut.index(image.len()));
    }
    image
}

fn segment() -> impl Strategy<Value = Segment> {
    let kind = prop_oneof![8 => Just(PT_LOAD), 1 => Just(PT_NOTE), 1 => Just(PT_DYNAMIC)];
    let len = prop_oneof![8 => 0..0x5000_u64, 1 => number()];
    (kind, number(), number(), any::<bool>(), vec(any::<u8>(), 0..64), len).prop_map(
        |(kind, virt, phys, same, bytes, len)| Segment {
            kind,
            virt: if same { phys } else { virt },
            phys,
            bytes,
            len,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_images(
        which in any::<Index>(),
        edits in vec((any::<Index>(), number(), select(vec![1_usize, 2, 4, 8])), 0..4),
        cut in proptest::option::weighted(0.2, any::<Index>()),
        company in company(),
    ) {
        let images = one_of_each();
        check(&damage(images[which.index(images.len())].clone(), &edits, cut), &company);
    }

    #[test]
    fn random_bytes(image in vec(any::<u8>(), 0..2000), company in company()) {
        check(&image, &company);
    }

    #[test]
    fn elf_files_of_any_segments(
        segments in vec(segment(), 0..6),
        entry in number(),
        enters_first in any::<bool>(),
        is_64 in any::<bool>(),
        kind in select(vec![ET_EXEC, ET_EXEC, ET_DYN]),
        company in company(),
    ) {
        let first = segments.first().filter(|_| enters_first).map(|segment| segment.virt);
        let entry = first.unwrap_or(entry);
        let image = match is_64 {
            true => elf64(kind, entry, &segments),
            false => elf32(kind, entry as u32, &segments),
        };
        check(&image, &company);
    }

    #[test]
    fn multiboot_headers_of_any_fields(
        flags in select(vec![1 << 16, 0x1_0003, 3, 8]),
        wild in vec((any::<bool>(), number()), 5),
        load in 0x1000..RAM as u32,
        offset in 0..100_u32,
        company in company(),
    ) {
        let sane = [load + offset * 4, load, 0, load + 0x1000, load + offset * 4];
        let fields: Vec<u32> = sane
            .iter()
            .zip(&wild)
            .map(|(sane, (is_wild, number))| if *is_wild { *number as u32 } else { *sane })
            .collect();
        for fields in [&sane[..], &fields] {
            let before = vec![0; offset as usize * 4];
            let header = multiboot_header(flags, fields);
            check(&[before, header, vec![0xF4; 50]].concat(), &company);
        }
    }

    #[test]
    fn multiboot2_headers_of_any_tags(
        tags in vec((0..12_u16, select(vec![0_u16, 1, 1, 1]), vec(number(), 0..5)), 0..4),
        phys in prop_oneof![0x1000..RAM, number()],
        cut in proptest::option::weighted(0.2, any::<Index>()),
        company in company(),
    ) {
        let tags: Vec<(u16, u16, Vec<u32>)> = tags
            .into_iter()
            .map(|(kind, flags, body)| (kind, flags, body.iter().map(|v| *v as u32).collect()))
            .collect();
        let tags: Vec<_> = tags.iter().map(|(k, f, body)| (*k, *f, body.as_slice())).collect();
        let code = [multiboot2_header(&tags), vec![0xF4; 50]].concat();
        let elf = elf64(ET_EXEC, phys, &[Segment::load(phys, phys, &code, 0x1000)]);
        for image in [with_sections(elf, &[1; 48], b"x"), code] {
            check(&damage(image, &[], cut), &company);
        }
    }

    #[test]
    fn bzimages_of_any_fields(
        version in select(vec![0x200_u16, 0x203, 0x205, 0x20A, 0x20C, 0x20F]),
        numbers in vec(number(), 5),
        bits in any::<(u8, u16, u8)>(),
        usual in any::<[bool; 5]>(),
        len in 0..3000_usize,
        company in company(),
    ) {
        let modern = BzImage::modern();
        let pick = |i: usize, otherwise: u32| if usual[i] { otherwise } else { numbers[i] as u32 };
        let image = BzImage {
            setup_sectors: bits.2 % 8,
            version,
            load_flags: bits.0 | 1,
            xload_flags: bits.1,
            relocatable: bits.0 >> 7,
            code32_start: pick(0, modern.code32_start),
            initrd_max: pick(1, modern.initrd_max),
            alignment: pick(2, modern.alignment),
            init_size: pick(3, modern.init_size),
            pref_address: if usual[4] { modern.pref_address } else { numbers[4] },
            cmdline_size: numbers[3] as u32,
            kernel: vec![0xF4; len],
        };
        check(&image.bytes(), &company);
    }
}

/// The mutations above prove nothing if what they start from does not load.
#[test]
fn good_images_load() {
    let alone = Company {
        protocol: None,
        entry: None,
        load_address: None,
        cmdline: String::new(),
        modules: Vec::new(),
        initrd: None,
    };
    for (index, image) in one_of_each().iter().enumerate() {
        assert!(check(image, &alone), "image {index} is refused");
    }
}

//! What each boot protocol promises its image, against what it finds: registers, segments
//! and the bytes in memory. No KVM.

mod images;

use images::*;
use ringfence::boot::{self, Error, Loaded, Module, Protocol, Request, acpi};
use ringfence::mem::{self, Bytes, GuestAddress, GuestMemory, MemoryMap};
use ringfence::x86::{Cr0, Cr4, Efer, Mode, Regs, Rflags, Segment as Seg};

const MIB: u64 = 1 << 20;

/// A machine with 64 MiB.
struct Bench {
    map: MemoryMap,
    memory: GuestMemory,
}

impl Bench {
    fn new() -> Self {
        Self::with(64 * MIB)
    }

    fn with(ram: u64) -> Self {
        Self { map: MemoryMap::new(ram), memory: mem::create(ram).unwrap() }
    }

    fn request<'a>(&'a self, image: &'a [u8]) -> Request<'a> {
        Request { image_name: "kernel", ..Request::new(image, &self.map, &self.memory) }
    }

    fn load(&self, image: &[u8]) -> Result<Loaded, Error> {
        boot::load(&self.request(image))
    }

    /// The error's text.
    fn refusal(&self, image: &[u8]) -> String {
        self.load(image).unwrap_err().to_string()
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn u16(&self, at: u64) -> u16 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn u32(&self, at: u64) -> u32 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn u64(&self, at: u64) -> u64 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn text(&self, at: u64) -> String {
        let bytes = (at..).map(|at| self.memory.read_obj::<u8>(GuestAddress(at)).unwrap());
        String::from_utf8(bytes.take_while(|byte| *byte != 0).collect()).unwrap()
    }

    /// What `virt` is translated to, by the processor's rules (Intel SDM Vol. 3A 5.5).
    fn translate(&self, cr3: u64, virt: u64) -> Option<u64> {
        let mut table = cr3;
        for level in (0..4).rev() {
            let entry = self.u64(table + (virt >> (12 + 9 * level) & 0x1FF) * 8);
            assert!(entry & 1 == 0 || entry & 2 != 0, "every page is writable");
            if entry & 1 == 0 {
                return None;
            }
            let mask = (1 << (12 + 9 * level)) - 1;
            if level == 0 || entry & 0x80 != 0 {
                return Some(entry & 0x000F_FFFF_FFFF_F000 & !mask | virt & mask);
            }
            table = entry & 0x000F_FFFF_FFFF_F000;
        }
        None
    }

    /// Does the descriptor table hold what the segment registers hold?
    fn check_descriptors(&self, loaded: &Loaded) {
        let cpu = &loaded.cpu;
        for segment in [cpu.cs, cpu.data, cpu.ss] {
            assert!(segment.selector + 7 <= cpu.gdt.limit);
            let at = cpu.gdt.base + u64::from(segment.selector);
            assert_eq!(self.u64(at), segment.descriptor());
        }
        assert_eq!(self.u64(cpu.gdt.base), 0, "the null descriptor");
    }
}

fn check_protected(loaded: &Loaded) {
    let cpu = &loaded.cpu;
    assert_eq!(cpu.mode, Mode::Protected);
    assert_eq!((cpu.cr0, cpu.cr4, cpu.efer), (Cr0::PE | Cr0::ET, Cr4::empty(), Efer::empty()));
    assert_eq!(cpu.rflags, Rflags::ONE);
    assert_eq!(cpu.cs, Seg::code32(cpu.cs.selector));
    assert_eq!((cpu.data, cpu.ss), (Seg::data32(cpu.data.selector), cpu.data));
    assert_eq!((cpu.tr, cpu.ldt), (Seg::task(0), Seg::no_ldt()));
}

fn check_long(loaded: &Loaded) {
    let cpu = &loaded.cpu;
    assert_eq!(cpu.mode, Mode::Long);
    assert_eq!((cpu.cr0, cpu.cr4), (Cr0::PE | Cr0::ET | Cr0::PG, Cr4::PAE));
    assert_eq!((cpu.efer, cpu.rflags), (Efer::LME | Efer::LMA, Rflags::ONE));
    assert_eq!(cpu.cs, Seg::code64(cpu.cs.selector));
    assert_eq!((cpu.data, cpu.ss), (Seg::data32(cpu.data.selector), cpu.data));
}

fn check_identity(bench: &Bench, loaded: &Loaded) {
    for virt in [0, 0x1000, 0x10_0FFF, 0x1234_5678, 0xBFFF_FFFF, 0xFEE0_0000, 0xFFFF_FFFF] {
        assert_eq!(bench.translate(loaded.cpu.cr3, virt), Some(virt), "{virt:#x}");
    }
    assert_eq!(bench.translate(loaded.cpu.cr3, 1 << 32), None);
}

/// `hvm_start_info` (Xen, arch-x86/hvm/start_info.h), field by field.
fn check_start_info(bench: &Bench, at: u64, cmdline: &str, modules: &[(&[u8], &str)]) {
    assert_eq!(bench.u32(at), 0x336E_C578);
    assert_eq!(bench.u32(at + 4), 1, "version");
    assert_eq!(bench.u32(at + 8), 0, "flags");
    assert_eq!(bench.u32(at + 12) as usize, modules.len());
    assert_eq!(bench.text(bench.u64(at + 24)), cmdline);
    assert_eq!(bench.u64(at + 32), 0, "no RSDP");
    assert_eq!(bench.u32(at + 48) as usize, bench.map.entries.len());
    for (i, (data, string)) in modules.iter().enumerate() {
        let entry = bench.u64(at + 16) + 32 * i as u64;
        assert_eq!(bench.u64(entry) % 4096, 0);
        assert_eq!(bench.u64(entry + 8), data.len() as u64);
        assert_eq!(bench.bytes(bench.u64(entry), data.len()), *data);
        assert_eq!(bench.text(bench.u64(entry + 16)), *string);
    }
    for (i, (range, kind)) in bench.map.entries.iter().enumerate() {
        let entry = bench.u64(at + 40) + 24 * i as u64;
        assert_eq!((bench.u64(entry), bench.u64(entry + 8)), (range.start, range.len()));
        assert_eq!(bench.u32(entry + 16), *kind as u32);
    }
}

#[test]
fn boot_sector_is_entered_as_by_a_bios() {
    let bench = Bench::new();
    let sector = boot_sector();
    let loaded = bench.load(&sector).unwrap();
    let cpu = &loaded.cpu;
    assert_eq!(loaded.description, "boot sector, entered in real mode");
    assert_eq!(cpu.regs, Regs { rip: 0x7C00, rsp: 0x7C00, rdx: 0x80, ..Regs::default() });
    assert_eq!((cpu.cs, cpu.data, cpu.ss), (Seg::real_code(0), Seg::real(0), Seg::real(0)));
    assert_eq!((cpu.cr0, cpu.cr4, cpu.efer), (Cr0::ET, Cr4::empty(), Efer::empty()));
    assert_eq!((cpu.idt.base, cpu.idt.limit), (0, 0x3FF));
    assert_eq!(cpu.rflags, Rflags::ONE);
    assert_eq!(bench.bytes(0x7C00, 512), sector);
    assert_eq!(bench.u16(0x413), 639);
    assert_eq!(bench.u16(0x40E), 0x9FC0);
}

#[test]
fn bios_calls_of_a_boot_sector_have_an_answer() {
    let bench = Bench::new();
    bench.load(&boot_sector()).unwrap();
    let handler = |vector: u64| {
        assert_eq!(bench.u16(vector * 4 + 2), 0xF000);
        bench.bytes(0xF_0000 + u64::from(bench.u16(vector * 4)), 8)
    };
    // cmp ah, 0x0E; jne +3; out 0xE9, al; iret
    assert_eq!(handler(0x10), [0x80, 0xFC, 0x0E, 0x75, 0x03, 0xE6, 0xE9, 0xCF]);
    // push bp; mov bp, sp; or byte [bp + 6], 1; pop bp
    assert_eq!(handler(0x13), [0x55, 0x89, 0xE5, 0x80, 0x4E, 0x06, 0x01, 0x5D]);
    assert_eq!(handler(0x15), handler(0x1F));
    // push ax; mov al, 0x20; out 0x20, al; pop ax; iret
    assert_eq!(handler(0x08)[..7], [0x50, 0xB0, 0x20, 0xE6, 0x20, 0x58, 0xCF]);
    // push ax; mov al, 0x20; out 0xA0, al; jmp to the first one's out 0x20
    assert_eq!(handler(0x70)[..7], [0x50, 0xB0, 0x20, 0xE6, 0xA0, 0xEB, 0x03]);
    for vector in (0..8).chain(0x20..0x70).chain(0x78..0x100) {
        assert_eq!(handler(vector)[0], 0xCF, "{vector:#x}: iret");
    }
}

#[test]
fn flat_real_elsewhere() {
    let bench = Bench::new();
    let image = [0x90; 0x9000];
    let mut request = bench.request(&image);
    request.entry = Some(Mode::Real);
    request.load_address = Some(0x1_0008);
    let cpu = boot::load(&request).unwrap().cpu;
    assert_eq!((cpu.cs, cpu.regs.rip), (Seg::real_code(0x1000), 8));
    assert_eq!((cpu.ss.base, cpu.regs.rsp), (0, 0x7C00));

    let bench = Bench::new();
    let mut request = bench.request(&image);
    request.entry = Some(Mode::Real);
    request.load_address = Some(0x1000);
    let loaded = boot::load(&request).unwrap();
    let stack = loaded.placed.iter().find(|placed| placed.what == "stack").unwrap();
    assert_eq!(loaded.cpu.ss.base + loaded.cpu.regs.rsp, stack.range.end);
    assert!(stack.range.start >= 0xA000 && stack.range.end <= 0x9_FC00);

    for (address, text) in [(0x10_0000, "below 0x100000"), (0x3F0, "overlaps interrupt vectors")] {
        let bench = Bench::new();
        let mut request = bench.request(&image);
        request.entry = Some(Mode::Real);
        request.load_address = Some(address);
        let error = boot::load(&request).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn flat_protected_and_long() {
    for mode in [Mode::Protected, Mode::Long] {
        let bench = Bench::new();
        let image = [0xF4; 5000];
        let mut request = bench.request(&image);
        let modules = [Module { data: &[1, 2, 3], cmdline: "one a=b" }];
        request.entry = Some(mode);
        request.cmdline = "hello world";
        request.modules = &modules;
        request.initrd = Some(&[9; 4097]);
        let loaded = boot::load(&request).unwrap();
        let cpu = &loaded.cpu;
        assert_eq!(loaded.protocol, Protocol::Flat);
        assert_eq!(bench.bytes(0x10_0000, 5000), image);
        assert_eq!(cpu.regs.rip, 0x10_0000);
        assert_eq!((cpu.cs.selector, cpu.data.selector), (8, 16));
        assert_eq!(cpu.regs.rbx, cpu.regs.rdi);
        bench.check_descriptors(&loaded);
        check_start_info(
            &bench,
            cpu.regs.rdi,
            "hello world",
            &[(&[9; 4097], "initrd"), (&[1, 2, 3], "one a=b")],
        );
        if mode == Mode::Protected {
            check_protected(&loaded);
            assert_eq!((cpu.regs.rsp + 4) % 16, 0);
            assert_eq!(bench.u32(cpu.regs.rsp), 0);
            assert_eq!(u64::from(bench.u32(cpu.regs.rsp + 4)), cpu.regs.rbx);
        } else {
            check_long(&loaded);
            check_identity(&bench, &loaded);
            assert_eq!((cpu.regs.rsp + 8) % 16, 0);
            assert_eq!(bench.u64(cpu.regs.rsp), 0);
        }
    }
}

#[test]
fn flat_needs_to_be_told_its_mode() {
    let bench = Bench::new();
    let mut request = bench.request(&[0x90; 100]);
    let error = boot::load(&request).unwrap_err();
    assert!(error.to_string().contains("--boot flat --entry real|protected|long"), "{error}");
    assert!(!error.is_usage());
    request.protocol = Some(Protocol::Flat);
    let error = boot::load(&request).unwrap_err();
    assert!(error.is_usage(), "{error}");
    let elf = elf64(ET_EXEC, 0x10_0000, &[Segment::load(0x10_0000, 0x10_0000, &[0xF4], 1)]);
    let mut request = bench.request(&elf);
    request.entry = Some(Mode::Long);
    assert!(boot::load(&request).unwrap_err().is_usage());
}

#[test]
fn elf64_higher_half() {
    let bench = Bench::new();
    let link = 0xFFFF_FFFF_8010_0000;
    let image = elf64(
        ET_EXEC,
        link + 2,
        &[
            Segment::load(link, 0x10_0000, &[0x90; 4096], 4096),
            Segment::load(link + 0x1000, 0x10_1000, &[7; 10], 0x30_0000),
        ],
    );
    let loaded = bench.load(&image).unwrap();
    let cpu = &loaded.cpu;
    check_long(&loaded);
    check_identity(&bench, &loaded);
    bench.check_descriptors(&loaded);
    assert_eq!(cpu.regs.rip, link + 2);
    for (virt, phys) in
        [(link, 0x10_0000), (link + 0x1000, 0x10_1000), (link + 0x30_0FFF, 0x40_0FFF)]
    {
        assert_eq!(bench.translate(cpu.cr3, virt), Some(phys), "{virt:#x}");
    }
    assert_eq!(bench.translate(cpu.cr3, link + 0x30_1000), None);
    assert_eq!(bench.bytes(0x10_0FFF, 12), [0x90, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
    check_start_info(&bench, cpu.regs.rdi, "", &[]);
    assert_eq!(cpu.regs.rdi, cpu.regs.rbx);
}

#[test]
fn elf64_link_address_below_4_gib_wins_over_identity() {
    let bench = Bench::new();
    // Linked over the boot block: what the loader adds must stay visible.
    let image = elf64(ET_EXEC, 0x8_0000, &[Segment::load(0x8_0000, 0x20_0000, &[0xF4; 9], 9)]);
    let loaded = bench.load(&image).unwrap();
    let cr3 = loaded.cpu.cr3;
    assert_eq!(bench.translate(cr3, 0x8_0008), Some(0x20_0008));
    for placed in loaded.placed.iter().filter(|placed| placed.what != "image segment") {
        assert_eq!(bench.translate(cr3, placed.range.start), Some(placed.range.start));
    }
}

#[test]
fn elf64_static_pie_is_moved_and_relocated() {
    let bench = Bench::new();
    let rela = |offset: u64, kind: u64, addend: u64| {
        [offset, kind, addend].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()
    };
    let dynamic = |count: u64| {
        let entries = [7, 0x100, 8, 24 * count, 9, 24, 0, 0];
        entries.iter().flat_map(|word: &u64| word.to_le_bytes()).collect::<Vec<u8>>()
    };
    let mut bytes = vec![0; 0x100];
    bytes.extend(rela(0x40, 8, 0x48));
    bytes.extend(rela(0x48, 6, 0));
    let image = |count| {
        let segments =
            [Segment::load(0, 0, &bytes, 0x400), Segment::other(PT_DYNAMIC, &dynamic(count))];
        elf64(ET_DYN, 0x10, &segments)
    };
    let loaded = bench.load(&image(1)).unwrap();
    assert_eq!(loaded.cpu.regs.rip, 0x20_0010);
    assert_eq!(bench.u64(0x20_0040), 0x20_0048);
    let refusal = Bench::new().refusal(&image(2));
    assert!(refusal.contains("relocations of type 6"), "{refusal}");
    let refusal = Bench::new().refusal(&image(1000));
    assert!(refusal.contains("in none of its segments"), "{refusal}");
}

#[test]
fn elf32_protected() {
    let bench = Bench::new();
    let image =
        elf32(ET_EXEC, 0xC010_0004, &[Segment::load(0xC010_0000, 0x10_0000, &[0xF4; 16], 0x2000)]);
    let mut request = bench.request(&image);
    request.cmdline = "x";
    let loaded = boot::load(&request).unwrap();
    let cpu = &loaded.cpu;
    check_protected(&loaded);
    bench.check_descriptors(&loaded);
    assert_eq!(cpu.regs.rip, 0x10_0004);
    assert!(loaded.description.contains("0xc0100004"), "{}", loaded.description);
    assert_eq!(bench.bytes(0x10_0000, 17), [[0xF4; 16].as_slice(), &[0]].concat());
    check_start_info(&bench, cpu.regs.rbx, "x", &[]);
    assert_eq!(u64::from(bench.u32(cpu.regs.rsp + 4)), cpu.regs.rbx);
}

#[test]
fn elf_without_load_addresses_goes_where_it_is_linked() {
    let bench = Bench::new();
    let image = elf64(ET_EXEC, 0x40_0000, &[Segment::load(0x40_0000, 0, &[1, 2], 2)]);
    bench.load(&image).unwrap();
    assert_eq!(bench.u16(0x40_0000), 0x0201);
}

#[test]
fn lying_elf_files_are_refused_in_words() {
    let at = |virt, phys, len| Segment::load(virt, phys, &[0xF4; 8], len);
    let good = |phys| at(phys, phys, 8);
    let cases = [
        (elf64(ET_EXEC, 0x10_0000, &[]), "no segment to load"),
        (elf64(ET_EXEC, 5, &[good(0x10_0000)]), "entry point 0x5 is in none of its segments"),
        (elf32(ET_EXEC, 5, &[good(0x10_0000)]), "entry point 0x5 is in none of its segments"),
        (elf64(ET_EXEC, 0x10_0000, &[at(0x10_0000, 0x10_0000, 4)]), "room for 0x4 in memory"),
        (elf64(ET_EXEC, 0x10_0000, &[good(0x10_0000), good(0x10_0004)]), "overlaps"),
        (elf64(ET_EXEC, 64 << 20, &[good(64 << 20)]), "lies beyond the guest's memory of 64 MiB"),
        (elf64(ET_EXEC, 0, &[good(0xFEE0_0000)]), "where no machine has RAM"),
        (elf64(ET_EXEC, 0, &[good(u64::MAX - 3)]), "leaves the 64-bit address space"),
        (elf64(ET_EXEC, 0, &[at(0, 0x10_0000, u64::MAX)]), "leaves the 64-bit address space"),
        (elf64(ET_EXEC, 0, &[at(0, 1, u64::MAX - 1)]), "where no machine has RAM"),
        (elf64(ET_EXEC, 0x1008, &[at(0x1008, 0x10_0000, 8)]), "page tables cannot express"),
        (elf64(ET_EXEC, 1 << 47, &[at(1 << 47, 0x10_0000, 8)]), "cannot be mapped"),
        (elf64(1, 0, &[good(0x10_0000)]), "link it first"),
        (
            elf64(ET_EXEC, 0x10_0000, &[good(0x10_0000), Segment::other(PT_INTERP, b"/ld.so\0")]),
            "not a bare-metal image",
        ),
        (elf64(ET_EXEC, 0, &vec![good(0x10_0000); 2000]), "more than 1024 segments"),
        (b"\x7FELF".to_vec(), "damaged"),
        (Vec::new(), "it is empty"),
    ];
    for (image, text) in cases {
        let refusal = Bench::new().refusal(&image);
        assert!(refusal.contains(text), "{refusal:?} does not say {text:?}");
    }
    let image = elf64(ET_EXEC, 0x10_0000, &[good(0x10_0000)]);
    let refusal = Bench::new().refusal(&image[..image.len() - 1]);
    assert!(refusal.contains("takes 0x8 bytes at 0x78 of a file of 0x7f bytes"), "{refusal}");
}

/// The information structure of multiboot 1, section 3.3.
fn check_multiboot(bench: &Bench, loaded: &Loaded, cmdline: &str, modules: &[(&[u8], &str)]) {
    let cpu = &loaded.cpu;
    check_protected(loaded);
    bench.check_descriptors(loaded);
    assert_eq!(cpu.regs.rax, 0x2BAD_B002);
    let info = cpu.regs.rbx;
    let rip = cpu.regs.rip;
    assert_eq!(cpu.regs, Regs { rip, rax: 0x2BAD_B002, rbx: info, ..Regs::default() });
    assert_eq!(bench.u32(info), 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
    assert_eq!((bench.u32(info + 4), bench.u32(info + 8)), (639, 63 * 1024));
    let pointer = |offset| u64::from(bench.u32(info + offset));
    assert_eq!(bench.text(pointer(16)), cmdline);
    assert_eq!(bench.text(pointer(64)), "ringfence");
    assert_eq!(pointer(20) as usize, modules.len());
    for (i, (data, string)) in modules.iter().enumerate() {
        let entry = pointer(24) + 16 * i as u64;
        let start = u64::from(bench.u32(entry));
        assert_eq!(start % 4096, 0);
        assert_eq!(u64::from(bench.u32(entry + 4)), start + data.len() as u64);
        assert_eq!(bench.text(u64::from(bench.u32(entry + 8))), *string);
        assert_eq!(bench.bytes(start, data.len()), *data);
    }
    assert_eq!(pointer(44), 24 * bench.map.entries.len() as u64);
    for (i, (range, kind)) in bench.map.entries.iter().enumerate() {
        let entry = pointer(48) + 24 * i as u64;
        assert_eq!(bench.u32(entry), 20);
        assert_eq!((bench.u64(entry + 4), bench.u64(entry + 12)), (range.start, range.len()));
        assert_eq!(bench.u32(entry + 20), *kind as u32);
    }
}

#[test]
fn multiboot_elf32_with_modules() {
    let bench = Bench::new();
    let code = [multiboot_header(0x7, &[]), vec![0xF4; 100]].concat();
    let image = elf32(ET_EXEC, 0x40_0010, &[Segment::load(0x40_0000, 0x40_0000, &code, 12 * MIB)]);
    let modules =
        [Module { data: b"NR_CPUS=1\n", cmdline: "env a" }, Module { data: &[], cmdline: "" }];
    let mut request = bench.request(&image);
    request.cmdline = "a b";
    request.modules = &modules;
    let loaded = boot::load(&request).unwrap();
    assert_eq!(loaded.description, "multiboot 1, ELF32");
    assert_eq!(loaded.cpu.regs.rip, 0x40_0010);
    check_multiboot(&bench, &loaded, "kernel a b", &[(b"NR_CPUS=1\n", "env a"), (&[], "")]);
}

#[test]
fn multiboot_elf64_is_entered_at_its_load_address() {
    let bench = Bench::new();
    let code = [multiboot_header(0, &[]), vec![0xF4; 100]].concat();
    let link = 0xFFFF_FFFF_8000_0000;
    let image = elf64(ET_EXEC, link + 0x10_000C, &[Segment::load(link + MIB, MIB, &code, 4096)]);
    let loaded = bench.load(&image).unwrap();
    assert_eq!(loaded.cpu.regs.rip, 0x10_000C);
    check_multiboot(&bench, &loaded, "kernel", &[]);
}

#[test]
fn multiboot_address_fields() {
    // 16 bytes of file before the part that is loaded, the header 4 bytes into it.
    let image = |header, load, load_end, bss_end, entry| {
        let fields = [header, load, load_end, bss_end, entry];
        [vec![1; 20], multiboot_header(1 << 16, &fields), vec![0xF4; 8]].concat()
    };
    let bench = Bench::new();
    let whole = image(0x20_0004, 0x20_0000, 0, 0, 0x20_0024);
    let loaded = bench.load(&whole).unwrap();
    assert_eq!(loaded.cpu.regs.rip, 0x20_0024);
    assert_eq!(bench.bytes(0x20_0000, 44), whole[16..]);
    check_multiboot(&bench, &loaded, "kernel", &[]);

    let bench = Bench::new();
    let part = image(0x20_0004, 0x20_0000, 0x20_0028, 0x20_1000, 0x20_0024);
    let loaded = bench.load(&part).unwrap();
    assert_eq!(bench.bytes(0x20_0000, 44), [&part[16..56], &[0; 4]].concat());
    assert_eq!(loaded.placed.iter().find(|p| p.what == "image").unwrap().range.end, 0x20_1000);

    for (fields, text) in [
        ((0x20_0000, 0x20_0004, 0, 0, 0x20_0000), "is not in the file"),
        ((0x20_0100, 0x20_0000, 0, 0, 0x20_0000), "is not in the file"),
        ((0x20_0004, 0x20_0000, 0x20_1000, 0, 0x20_0000), "is it truncated?"),
        ((0x20_0004, 0x20_0000, 0x10_0000, 0, 0x20_0000), "is it truncated?"),
        ((0x20_0004, 0x20_0000, 0, 0x20_0001, 0x20_0000), "before its bytes do"),
        ((0x20_0004, 0x20_0000, 0, 0, 0x20_1000), "outside of it"),
        ((0x20_0004, 0x20_0000, 0, 0xFFFF_FFFF, 0x20_0000), "where no machine has RAM"),
    ] {
        let (header, load, load_end, bss_end, entry) = fields;
        let refusal = Bench::new().refusal(&image(header, load, load_end, bss_end, entry));
        assert!(refusal.contains(text), "{refusal:?} does not say {text:?}");
    }
}

#[test]
fn multiboot_headers_that_do_not_count() {
    let mut late = vec![0; 8192 - 8];
    late.extend(multiboot_header(0, &[]));
    assert!(boot::probe(&late).is_err(), "it reaches beyond 8192 bytes");
    let mut odd = vec![0; 2];
    odd.extend(multiboot_header(0, &[]));
    assert!(boot::probe(&odd).is_err(), "it is not aligned");
    let mut wrong = multiboot_header(0, &[]);
    wrong[8] ^= 1;
    assert!(boot::probe(&wrong).is_err(), "its checksum is wrong");
    let refusal = Bench::new().refusal(&multiboot_header(1 << 5, &[]));
    assert!(refusal.contains("requires features 0x20"), "{refusal}");
    let refusal = Bench::new().refusal(&multiboot_header(0, &[]));
    assert!(refusal.contains("no address fields"), "{refusal}");
    let refusal = Bench::new().refusal(&multiboot_header(1 << 16, &[1, 2]));
    assert!(refusal.contains("ends inside"), "{refusal}");
}

#[test]
fn pvh_elf32_and_elf64() {
    let code = Segment::load(0xFFFF_FFFF_8010_0000, MIB, &[0xF4; 64], 64);
    let low = Segment::load(MIB, MIB, &[0xF4; 64], 64);
    let entry = (MIB + 16).to_le_bytes();
    let images = [
        (elf64(ET_EXEC, 0, &[code.clone(), Segment::note("Xen", 18, &entry)]), "PVH, ELF64"),
        (elf64(ET_EXEC, 0, &[code.clone(), Segment::note("Xen", 18, &entry[..4])]), "PVH, ELF64"),
        (elf32(ET_EXEC, 0, &[low, Segment::note("Xen", 18, &entry[..4])]), "PVH, ELF32"),
    ];
    for (image, description) in images {
        let bench = Bench::new();
        let mut request = bench.request(&image);
        request.cmdline = "console=ttyS0";
        request.initrd = Some(b"cpio");
        let loaded = boot::load(&request).unwrap();
        assert_eq!(loaded.description, description);
        check_protected(&loaded);
        bench.check_descriptors(&loaded);
        let rbx = loaded.cpu.regs.rbx;
        assert_eq!(loaded.cpu.regs, Regs { rip: MIB + 16, rbx, ..Regs::default() });
        check_start_info(&bench, rbx, "console=ttyS0", &[(b"cpio", "initrd")]);
    }
    for (note, text) in [
        (Segment::note("Xen", 18, &[0; 8]), "entry point 0x0 is in none"),
        (Segment::note("Xen", 18, &[0; 2]), "has 2 bytes instead of 4 or 8"),
    ] {
        let refusal = Bench::new().refusal(&elf64(ET_EXEC, 0, &[code.clone(), note]));
        assert!(refusal.contains(text), "{refusal:?} does not say {text:?}");
    }
    let bench = Bench::new();
    let plain = elf64(ET_EXEC, 0, &[code, Segment::note("Xen", 17, &entry)]);
    let mut request = bench.request(&plain);
    request.protocol = Some(Protocol::Pvh);
    assert!(boot::load(&request).unwrap_err().to_string().contains("no note of type 18"));
}

/// The tags of multiboot 2's information (section 3.6), each with its body.
fn multiboot2_tags(bench: &Bench, loaded: &Loaded) -> Vec<(u32, Vec<u8>)> {
    let cpu = &loaded.cpu;
    check_protected(loaded);
    bench.check_descriptors(loaded);
    let (info, rip) = (cpu.regs.rbx, cpu.regs.rip);
    assert_eq!(cpu.regs, Regs { rip, rax: 0x36D7_6289, rbx: info, ..Regs::default() });
    assert_eq!(info % 8, 0);
    assert_eq!(bench.u32(info + 4), 0, "reserved");
    let end = info + u64::from(bench.u32(info));
    let mut tags = Vec::new();
    let mut at = info + 8;
    while at < end {
        let (kind, size) = (bench.u32(at), bench.u32(at + 4) as usize);
        tags.push((kind, bench.bytes(at + 8, size - 8)));
        at = (at + size as u64).next_multiple_of(8);
    }
    assert_eq!((at, tags.pop()), (end, Some((0, vec![]))), "the end tag");
    tags
}

fn le(values: &[u64], size: usize) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()[..size].to_vec()).collect()
}

/// Tags 1, 2, 4 and 6.
fn check_multiboot2_basics(bench: &Bench, tags: &[(u32, Vec<u8>)], cmdline: &[u8]) {
    let tag = |kind| &tags.iter().find(|tag| tag.0 == kind).unwrap().1;
    assert_eq!(tag(1), cmdline);
    assert_eq!(tag(2), b"ringfence\0");
    assert_eq!(*tag(4), le(&[639, 63 * 1024], 4));
    let mut map = le(&[24, 0], 4);
    for (range, kind) in &bench.map.entries {
        map.extend(le(&[range.start, range.len(), *kind as u64], 8));
    }
    assert_eq!(*tag(6), map);
}

#[test]
fn multiboot2_elf64_with_modules_and_sections() {
    let bench = Bench::new();
    let wishes: &[(u16, u16, &[u32])] = &[
        (1, 0, &[1, 3, 6, 9, 14]),
        (5, 1, &[1024, 768, 32]),
        (6, 0, &[]),
        (9, 0, &[0xBAD]),
        (10, 0, &[0, u32::MAX, 4096, 0]),
        (99, 1, &[]),
    ];
    let code = [multiboot2_header(wishes), vec![0xF4; 64]].concat();
    let link = 0xFFFF_FFFF_8010_0000;
    let elf = elf64(ET_EXEC, link + 8, &[Segment::load(link, MIB, &code, 0x5000)]);
    let image = with_sections(elf, &[3; 24], b"\0name\0");
    let modules = [Module { data: &[7; 5000], cmdline: "fs ro" }];
    let mut request = bench.request(&image);
    request.cmdline = "a=b";
    request.modules = &modules;
    let loaded = boot::load(&request).unwrap();
    assert_eq!(loaded.description, "multiboot 2, ELF64");
    assert_eq!(loaded.cpu.regs.rip, MIB + 8);
    let tags = multiboot2_tags(&bench, &loaded);
    check_multiboot2_basics(&bench, &tags, b"a=b\0");
    let kinds: Vec<u32> = tags.iter().map(|tag| tag.0).collect();
    assert_eq!(kinds, [1, 2, 3, 4, 6, 9, 21]);
    let module = &tags[2].1;
    let start = u64::from(u32::from_le_bytes(module[..4].try_into().unwrap()));
    assert_eq!(start % 4096, 0);
    assert_eq!(module[4..], [&le(&[start + 5000], 4)[..], b"fs ro\0"].concat());
    assert_eq!(bench.bytes(start, 5000), [7; 5000]);
    let sections = &tags[5].1;
    assert_eq!(sections[..12], le(&[3, 64, 2], 4));
    let address = |section: usize| {
        let at = 12 + 64 * section + 16;
        u64::from_le_bytes(sections[at..at + 8].try_into().unwrap())
    };
    assert_eq!((address(0), bench.bytes(address(1), 24)), (0, vec![3; 24]));
    assert_eq!(bench.bytes(address(2), 6), b"\0name\0");
    assert_eq!(tags[6].1, le(&[MIB], 4), "load base");
}

#[test]
fn multiboot2_elf32_with_an_entry_tag() {
    let bench = Bench::new();
    // ELF32's headers end at a multiple of 4 only.
    let header = multiboot2_header(&[(3, 0, &[0x10_0040])]);
    let code = [vec![0; 4], header, vec![0xF4; 64]].concat();
    let elf = elf32(ET_EXEC, 0x10_0000, &[Segment::load(MIB, MIB, &code, 4096)]);
    let loaded = bench.load(&with_sections(elf, &[3; 16], b"\0x\0")).unwrap();
    assert_eq!(loaded.cpu.regs.rip, 0x10_0040);
    let tags = multiboot2_tags(&bench, &loaded);
    check_multiboot2_basics(&bench, &tags, b"\0");
    let sections = &tags.last().unwrap().1;
    let at = 12 + 40 + 12;
    let address = u32::from_le_bytes(sections[at..at + 4].try_into().unwrap());
    assert_eq!(bench.bytes(u64::from(address), 16), [3; 16]);
}

#[test]
fn multiboot2_address_tag() {
    let image = |load, load_end, entry| {
        let tags: &[(u16, u16, &[u32])] =
            &[(2, 0, &[0x20_0010, load, load_end, 0]), (3, 0, &[entry])];
        [vec![1; 16], multiboot2_header(tags), vec![0xF4; 8]].concat()
    };
    for load in [0x20_0000, u32::MAX] {
        let bench = Bench::new();
        let bytes = image(load, 0, 0x20_0048);
        let loaded = bench.load(&bytes).unwrap();
        assert_eq!(loaded.description, "multiboot 2, address tag");
        assert_eq!(loaded.cpu.regs.rip, 0x20_0048);
        assert_eq!(bench.bytes(0x20_0000, bytes.len()), bytes);
        let tags = multiboot2_tags(&bench, &loaded);
        check_multiboot2_basics(&bench, &tags, b"\0");
        assert_eq!(tags.len(), 4);
    }
    for (bytes, text) in [
        (image(0x20_0000, 0, 0x30_0000), "outside of it"),
        (image(0x20_0000, 0x30_0000, 0x20_0000), "is it truncated?"),
        (image(0x10_0000, 0, 0x20_0000), "is not in the file"),
    ] {
        let refusal = Bench::new().refusal(&bytes);
        assert!(refusal.contains(text), "{refusal:?} does not say {text:?}");
    }
}

#[test]
fn multiboot2_wishes_that_cannot_be_met() {
    let cases: &[(u16, u16, &[u32], &str)] = &[
        (1, 0, &[22], "information of type 22"),
        (2, 0, &[0x10_0000, 0x10_0000, 0, 0], "no entry address tag"),
        (2, 0, &[0], "tag of type 2 is too short"),
        (4, 0, &[1], "requires a console"),
        (5, 0, &[0, 0, 0], "requires a framebuffer"),
        (11, 0, &[], "requires tag 11"),
        (6, 0, &[], "not an ELF file"),
    ];
    for (kind, flags, body, text) in cases {
        let image = multiboot2_header(&[(*kind, *flags, body)]);
        let refusal = Bench::new().refusal(&image);
        assert!(refusal.contains(text), "{refusal:?} does not say {text:?}");
    }
    let mut cut = multiboot2_header(&[(6, 0, &[])]);
    cut[20] = 7; // a size below the tag's own head
    assert!(Bench::new().refusal(&cut).contains("ends inside the tag at 0x10"));
    let mut late = vec![0; 32768 - 16];
    late.extend(multiboot2_header(&[]));
    assert!(boot::probe(&late).is_err(), "it reaches beyond 32768 bytes");
}

#[test]
fn the_richer_protocol_wins() {
    let multiboot = multiboot_header(0, &[]);
    let code = [multiboot2_header(&[]), multiboot, vec![0xF4; 64]].concat();
    let segment = Segment::load(MIB, MIB, &code, 4096);
    let note = Segment::note("Xen", 18, &(MIB as u32).to_le_bytes());
    let image = elf64(ET_EXEC, MIB, &[segment, note]);
    let description = |image: &[u8]| boot::probe(image).unwrap().description;
    assert_eq!(description(&image), "multiboot 2, ELF64");
    for (protocol, magic) in
        [(Protocol::Multiboot, 0x2BAD_B002), (Protocol::Pvh, 0), (Protocol::Elf, 0)]
    {
        let bench = Bench::new();
        let request = Request { protocol: Some(protocol), ..bench.request(&image) };
        let loaded = boot::load(&request).unwrap();
        assert_eq!((loaded.protocol, loaded.cpu.regs.rax), (protocol, magic));
    }
}

/// The zero page (Linux, Documentation/arch/x86/zero-page.rst) without the setup header.
fn check_zero_page(bench: &Bench, at: u64, cmdline: &str, initrd: Option<&[u8]>) {
    assert_eq!(at % 4096, 0);
    assert_eq!(bench.bytes(at, 0x1E0), [0; 0x1E0], "no screen, no APM, nothing above 4 GiB");
    assert_eq!(bench.u32(at + 0x1E0), 63 * 1024, "alt_mem_k");
    assert_eq!(bench.u16(at + 0x1E8), bench.map.entries.len() as u16);
    assert_eq!(bench.u32(at + 0x1EC), 0, "the sentinel at 0x1EF");
    assert_eq!(bench.u16(at + 0x1FE), 0xAA55);
    assert_eq!(bench.bytes(at + 0x202, 4), b"HdrS");
    assert_eq!(bench.u16(at + 0x206), 0x20F);
    assert_eq!(bench.u16(at + 0x210), 0x01FF, "type_of_loader, loadflags");
    assert_eq!(bench.text(u64::from(bench.u32(at + 0x228))), cmdline);
    let ramdisk = (u64::from(bench.u32(at + 0x218)), bench.u32(at + 0x21C) as usize);
    match initrd {
        Some(data) => {
            assert_eq!((ramdisk.0 % 4096, ramdisk.1), (0, data.len()));
            assert_eq!(bench.bytes(ramdisk.0, data.len()), data);
        }
        None => assert_eq!(ramdisk, (0, 0)),
    }
    for (i, (range, kind)) in bench.map.entries.iter().enumerate() {
        let entry = at + 0x2D0 + 20 * i as u64;
        assert_eq!((bench.u64(entry), bench.u64(entry + 8)), (range.start, range.len()));
        assert_eq!(bench.u32(entry + 16), *kind as u32);
    }
}

#[test]
fn bzimage_64_bit() {
    let bench = Bench::new();
    let kernel = BzImage::modern();
    let image = kernel.bytes();
    let mut request = bench.request(&image);
    request.cmdline = "console=ttyS0 quiet";
    request.initrd = Some(&[5; 5000]);
    let loaded = boot::load(&request).unwrap();
    assert_eq!(loaded.description, "Linux bzImage, protocol 2.15, 64-bit entry");
    check_long(&loaded);
    check_identity(&bench, &loaded);
    bench.check_descriptors(&loaded);
    let rsi = loaded.cpu.regs.rsi;
    assert_eq!(loaded.cpu.regs, Regs { rip: 0x100_0200, rsi, ..Regs::default() });
    assert_eq!((loaded.cpu.cs.selector, loaded.cpu.data.selector), (0x10, 0x18));
    assert_eq!(bench.bytes(0x100_0000, 0x1000), kernel.kernel);
    check_zero_page(&bench, rsi, "console=ttyS0 quiet", Some(&[5; 5000]));
    assert_eq!(bench.u32(rsi + 0x214), 0x100_0000, "code32_start");
    assert_eq!(bench.bytes(rsi + 0x22C, 0x38), image[0x22C..0x264], "the header as it was");
    assert_eq!(u64::from(bench.u32(rsi + 0x218)), 64 * MIB - 0x2000, "initrd at the top");
    let room = loaded.placed.iter().find(|p| p.range.start == 0x100_0000).unwrap();
    assert_eq!(room.range.end, 0x110_0000);
}

#[test]
fn bzimage_initrd_stays_below_its_limit() {
    let bench = Bench::new();
    let image = BzImage { initrd_max: 0x1FF_FFFF, ..BzImage::modern() }.bytes();
    let mut request = bench.request(&image);
    request.initrd = Some(&[5; 4096]);
    let zero_page = boot::load(&request).unwrap().cpu.regs.rsi;
    assert_eq!(bench.u32(zero_page + 0x218), 0x1FF_F000);
}

#[test]
fn bzimage_32_bit() {
    let memtest = BzImage {
        xload_flags: 4,
        relocatable: 0,
        pref_address: 0x10_0000,
        code32_start: 0x10_0010,
        ..BzImage::modern()
    };
    let bench = Bench::new();
    let loaded = bench.load(&memtest.bytes()).unwrap();
    assert_eq!(loaded.description, "Linux bzImage, protocol 2.15, 32-bit entry");
    check_protected(&loaded);
    bench.check_descriptors(&loaded);
    let rsi = loaded.cpu.regs.rsi;
    assert_eq!(loaded.cpu.regs, Regs { rip: 0x10_0010, rsi, ..Regs::default() });
    assert_eq!((loaded.cpu.cs.selector, loaded.cpu.data.selector), (0x10, 0x18));
    assert_eq!(bench.bytes(0x10_0000, 0x1000), memtest.kernel);
    check_zero_page(&bench, rsi, "", None);

    // What is not relocatable moves itself to pref_address, and needs its room there.
    let bench = Bench::new();
    let far = BzImage { pref_address: 0x20_0000, ..memtest };
    let loaded = bench.load(&far.bytes()).unwrap();
    assert_eq!(bench.bytes(0x10_0000, 0x1000), far.kernel);
    let room = loaded.placed.iter().find(|p| p.range.start == 0x10_0000).unwrap();
    assert_eq!(room.range.end, 0x30_0000);

    // Fields younger than the version count for nothing.
    let old = BzImage { version: 0x202, xload_flags: 1, ..BzImage::modern() };
    let bench = Bench::new();
    let loaded = bench.load(&old.bytes()).unwrap();
    assert_eq!((loaded.cpu.mode, loaded.cpu.regs.rip), (Mode::Protected, 0x10_0000));
}

#[test]
fn lying_bzimages_are_refused_in_words() {
    let modern = BzImage::modern;
    let cases = [
        (BzImage { load_flags: 0, ..modern() }, "zImage"),
        (BzImage { init_size: 64 << 20, ..modern() }, "lies beyond the guest's memory of 64 MiB"),
        (BzImage { init_size: u32::MAX, ..modern() }, "where no machine has RAM"),
        (BzImage { pref_address: u64::MAX, ..modern() }, "not between 1 MiB and 3 GiB"),
        (BzImage { pref_address: 0x1000, ..modern() }, "not between 1 MiB and 3 GiB"),
        (BzImage { pref_address: 1 << 32, relocatable: 0, ..modern() }, "not between"),
        (BzImage { alignment: 0xFFFF_FFFF, ..modern() }, "not between 1 MiB and 3 GiB"),
        (BzImage { code32_start: 0x9000, xload_flags: 0, ..modern() }, "is outside of it"),
        (BzImage { kernel: vec![0; 0x200], ..modern() }, "before its 64-bit entry point"),
        (BzImage { kernel: vec![], ..modern() }, "is it truncated?"),
    ];
    for (image, text) in cases {
        let refusal = Bench::new().refusal(&image.bytes());
        assert!(refusal.contains(text), "{refusal:?} does not say {text:?}");
    }
    let image = modern().bytes();
    for len in [0x206, 0x210, 0x230, 0x270, 600, 2000, image.len() - 16] {
        let refusal = Bench::new().refusal(&image[..len]);
        assert!(refusal.contains("truncated"), "{refusal}");
    }
    let bench = Bench::new();
    let mut request = bench.request(&image);
    let long = "x".repeat(2048);
    request.cmdline = &long;
    let error = boot::load(&request).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("this kernel takes 2047"), "{error}");
    request.cmdline = &long[1..];
    boot::load(&request).unwrap();
    request.modules = &[Module { data: &[], cmdline: "" }];
    assert!(boot::load(&request).unwrap_err().is_usage());
}

#[test]
fn vmlinux_64_bit() {
    let bench = Bench::new();
    let code = Segment::load(0xFFFF_FFFF_8100_0000, 0x100_0000, &[0xF4; 64], 4096);
    let percpu = Segment::load(0, 0x100_1000, &[1; 64], 64);
    let notes = [
        Segment::note("Linux", 257, &[0; 4]),
        Segment::note("Xen", 18, &0x100_0000_u64.to_le_bytes()),
    ];
    let [linux, xen] = notes;
    let image = elf64(ET_EXEC, 0x100_0010, &[code, percpu, xen, linux]);
    let mut request = bench.request(&image);
    request.cmdline = "quiet";
    request.initrd = Some(&[6; 10]);
    let loaded = boot::load(&request).unwrap();
    assert_eq!(loaded.description, "Linux vmlinux, ELF64, 64-bit entry");
    check_long(&loaded);
    check_identity(&bench, &loaded);
    let rsi = loaded.cpu.regs.rsi;
    assert_eq!(loaded.cpu.regs, Regs { rip: 0x100_0010, rsi, ..Regs::default() });
    check_zero_page(&bench, rsi, "quiet", Some(&[6; 10]));
    assert_eq!(bench.u32(0x100_1000), 0x0101_0101);
    // The same without notes, on request; and not as ELF32.
    let code = [Segment::load(0x100_0000, 0x100_0000, &[0xF4; 64], 64)];
    for (image, bits) in
        [(elf64(ET_EXEC, 0x100_0010, &code), 64), (elf32(ET_EXEC, 0x100_0010, &code), 32)]
    {
        let fresh = Bench::new();
        let request = Request { protocol: Some(Protocol::Linux), ..fresh.request(&image) };
        match boot::load(&request) {
            Ok(loaded) => assert_eq!((bits, loaded.cpu.regs.rip), (64, 0x100_0010)),
            Err(error) => assert!(bits == 32 && error.to_string().contains("32-bit"), "{error}"),
        }
    }
    // The same file by its other note.
    let fresh = Bench::new();
    let mut request = fresh.request(&image);
    request.protocol = Some(Protocol::Pvh);
    check_protected(&boot::load(&request).unwrap());
}

#[test]
fn a_module_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    let image = elf64(ET_EXEC, MIB, &[Segment::load(MIB, MIB, &[0xF4], 1)]);
    let mut request = bench.request(&image);
    let big = vec![0; 64 << 20];
    request.initrd = Some(&big);
    let error = boot::load(&request).unwrap_err().to_string();
    assert!(error.starts_with("no room for module initrd (67108864 bytes)"), "{error}");
    request.initrd = None;
    request.cmdline = "a\0b";
    let error = boot::load(&request).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("NUL"), "{error}");
}

/// A request for a machine with ACPI tables.
fn with_acpi<'a>(bench: &'a Bench, image: &'a [u8]) -> Request<'a> {
    let ports = acpi::Ports { pm_event: 0x600, pm_control: 0x604, pm_timer: 0x608, reset: 0xCF9 };
    let hardware = acpi::Hardware { cpus: 1, local_apics: true, io_apic: true, ports };
    Request { hardware: Some(hardware), ..bench.request(image) }
}

#[test]
fn each_protocol_says_where_the_acpi_tables_are() {
    const RSDP: u64 = 0xE_0000;
    let bench = Bench::new();
    let image = BzImage::modern().bytes();
    let loaded = boot::load(&with_acpi(&bench, &image)).unwrap();
    assert_eq!(bench.u64(loaded.cpu.regs.rsi + 0x70), RSDP, "acpi_rsdp_addr");
    assert_eq!(bench.bytes(RSDP, 8), *b"RSD PTR ");

    let bench = Bench::new();
    let request = Request { entry: Some(Mode::Long), ..with_acpi(&bench, &[0xF4; 64]) };
    let loaded = boot::load(&request).unwrap();
    assert_eq!(bench.u64(loaded.cpu.regs.rdi + 32), RSDP, "rsdp_paddr");

    let bench = Bench::new();
    // ELF32's headers end at a multiple of 4 only.
    let code = [vec![0; 4], multiboot2_header(&[]), vec![0xF4; 64]].concat();
    let image = elf32(ET_EXEC, MIB as u32 + 64, &[Segment::load(MIB, MIB, &code, 4096)]);
    let tags = multiboot2_tags(&bench, &boot::load(&with_acpi(&bench, &image)).unwrap());
    let tag = |kind| &tags.iter().find(|tag| tag.0 == kind).unwrap().1;
    assert_eq!(*tag(14), bench.bytes(RSDP, 20));
    assert_eq!(*tag(15), bench.bytes(RSDP, 36));
}

#[test]
fn an_image_where_acpi_tables_belong_gets_none() {
    let bench = Bench::new();
    let request = Request {
        entry: Some(Mode::Protected),
        load_address: Some(0xE_0100),
        ..with_acpi(&bench, &[0xF4; 64])
    };
    let loaded = boot::load(&request).unwrap();
    assert_eq!(bench.u64(loaded.cpu.regs.rdi + 32), 0, "no RSDP");
    assert_eq!(bench.bytes(0xE_0000, 64), [0; 64]);
    assert!(loaded.placed.iter().all(|placed| placed.what != "ACPI tables"));
}

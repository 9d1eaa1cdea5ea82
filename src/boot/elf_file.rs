//! What the protocols need of an ELF file: checked segments, notes, and where an address
//! lies (System V gABI, chapters 4 and 5). Called by every protocol whose images are ELF.

use object::LittleEndian;
use object::elf::{self, FileHeader32, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader};

use super::Error;
use super::entry::Mapping;
use super::place::Placer;

const FORMAT: &str = "ELF image";
/// More would be an attack, not an image: the linkers' usual number is 3 to 6.
const MOST_SEGMENTS: usize = 1024;
type Endian = LittleEndian;

/// 32-bit or 64-bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Elf32,
    Elf64,
}

impl Class {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Elf32 => "ELF32",
            Self::Elf64 => "ELF64",
        }
    }
}

/// A loadable segment: its bytes are in the file, its sizes agree, and neither of its
/// address ranges leaves 64 bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) virt: u64,
    pub(super) phys: u64,
    pub(super) len: u64,
    /// PF_W.
    pub(super) writable: bool,
}

/// A note: owner, type, descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note<'a> {
    pub(super) owner: &'a [u8],
    pub(super) kind: u32,
    pub(super) descriptor: &'a [u8],
}

/// A checked ELF file.
#[derive(Debug)]
pub(super) struct ElfFile<'a> {
    pub(super) class: Class,
    /// ET_DYN: linked to run anywhere.
    pub(super) relocatable: bool,
    pub(super) entry: u64,
    pub(super) segments: Vec<Segment<'a>>,
    pub(super) notes: Vec<Note<'a>>,
    /// The dynamic section's bytes.
    pub(super) dynamic: Option<&'a [u8]>,
    /// PT_INTERP is there.
    pub(super) has_interpreter: bool,
}

/// Is it an ELF file for this kind of processor? Looks at the header only.
pub(super) fn class(image: &[u8]) -> Option<Class> {
    let word = |at: usize| Some(u16::from_le_bytes([*image.get(at)?, *image.get(at + 1)?]));
    if !image.starts_with(b"\x7FELF") || image.get(5) != Some(&elf::ELFDATA2LSB.0) {
        return None;
    }
    match (image[4], word(18)?) {
        (1, machine) if machine == elf::EM_386.0 => Some(Class::Elf32),
        (2, machine) if machine == elf::EM_X86_64.0 => Some(Class::Elf64),
        _ => None,
    }
}

/// Reads and checks an ELF file.
pub(super) fn parse(image: &[u8]) -> Result<ElfFile<'_>, Error> {
    match class(image) {
        Some(Class::Elf32) => read::<FileHeader32<Endian>>(image, Class::Elf32),
        Some(Class::Elf64) => read::<FileHeader64<Endian>>(image, Class::Elf64),
        None => Err(bad("it is not an ELF file for x86".to_owned())),
    }
}

/// Is it a program that another one loads (PT_INTERP)? Looks at headers only: `head` may end
/// behind them.
pub(super) fn has_interpreter(head: &[u8]) -> bool {
    match class(head) {
        Some(Class::Elf32) => names_interpreter::<FileHeader32<Endian>>(head),
        Some(Class::Elf64) => names_interpreter::<FileHeader64<Endian>>(head),
        None => false,
    }
}

fn names_interpreter<H: FileHeader<Endian = Endian>>(head: &[u8]) -> bool {
    let programs = |header: &H| {
        let endian = header.endian().ok()?;
        let programs = header.program_headers(endian, head).ok()?;
        Some(programs.iter().any(|it| it.p_type(endian) == elf::PT_INTERP))
    };
    H::parse(head).ok().and_then(programs).unwrap_or(false)
}

fn bad(problem: String) -> Error {
    Error::malformed(FORMAT, problem)
}

fn read<'a, H: FileHeader<Endian = Endian>>(
    image: &'a [u8],
    class: Class,
) -> Result<ElfFile<'a>, Error> {
    let reason = |e: object::read::Error| bad(e.to_string());
    let header = H::parse(image).map_err(reason)?;
    let endian = header.endian().map_err(reason)?;
    let kind = header.e_type(endian);
    if kind != elf::ET_EXEC && kind != elf::ET_DYN {
        let problem = format!("its type is {} (an object file? link it first)", kind.0);
        return Err(Error::unsupported(FORMAT, problem));
    }
    let mut file = ElfFile {
        class,
        relocatable: kind == elf::ET_DYN,
        entry: header.e_entry(endian).into(),
        segments: Vec::new(),
        notes: Vec::new(),
        dynamic: None,
        has_interpreter: false,
    };
    let programs = header.program_headers(endian, image).map_err(reason)?;
    for (index, program) in programs.iter().enumerate() {
        match program.p_type(endian) {
            elf::PT_LOAD => file.segments.extend(segment(index, program, image)?),
            elf::PT_NOTE => read_notes(program, image, &mut file.notes),
            elf::PT_INTERP => file.has_interpreter = true,
            elf::PT_DYNAMIC => file.dynamic = program.data(endian, image).ok(),
            _ => {}
        }
        if file.segments.len() > MOST_SEGMENTS {
            return Err(bad(format!("it has more than {MOST_SEGMENTS} segments to load")));
        }
    }
    if file.segments.is_empty() {
        return Err(bad("it has no segment to load (PT_LOAD)".to_owned()));
    }
    use_link_addresses_where_no_others(&mut file.segments);
    Ok(file)
}

/// One PT_LOAD, or `None` where it has no byte.
fn segment<'a, P: ProgramHeader<Endian = Endian>>(
    index: usize,
    program: &P,
    image: &'a [u8],
) -> Result<Option<Segment<'a>>, Error> {
    let endian = LittleEndian;
    let (offset, in_file) = program.file_range(endian);
    let len: u64 = program.p_memsz(endian).into();
    let (virt, phys) = (program.p_vaddr(endian).into(), program.p_paddr(endian).into());
    let bytes = program.data(endian, image).map_err(|()| {
        bad(format!(
            "segment {index} takes {in_file:#x} bytes at {offset:#x} of a file of {:#x} bytes: is it truncated?",
            image.len()
        ))
    })?;
    if in_file > len {
        return Err(bad(format!(
            "segment {index} has {in_file:#x} bytes in the file, and room for {len:#x} in memory"
        )));
    }
    for start in [virt, phys] {
        // The last byte may be the address space's last.
        if len > 0 && start.checked_add(len - 1).is_none() {
            return Err(bad(format!(
                "segment {index} of {len:#x} bytes at {start:#x} leaves the 64-bit address space"
            )));
        }
    }
    let writable = program.p_flags(endian).contains(elf::PF_W);
    Ok((len > 0).then_some(Segment { bytes, virt, phys, len, writable }))
}

/// Damaged notes are none: only the protocols that ask for a note need it.
fn read_notes<'a, P: ProgramHeader<Endian = Endian>>(
    program: &P,
    image: &'a [u8],
    notes: &mut Vec<Note<'a>>,
) {
    let Ok(Some(found)) = program.notes(LittleEndian, image) else { return };
    for note in found.map_while(Result::ok) {
        let kind = note.n_type(LittleEndian).0;
        notes.push(Note { owner: note.name(), kind, descriptor: note.desc() });
    }
}

/// Some linkers leave every p_paddr 0. Then the image goes where it is linked.
fn use_link_addresses_where_no_others(segments: &mut [Segment<'_>]) {
    if segments.iter().all(|segment| segment.phys == 0) {
        segments.iter_mut().for_each(|segment| segment.phys = segment.virt);
    }
}

impl<'a> ElfFile<'a> {
    /// The descriptor of a note.
    pub(super) fn note(&self, owner: &[u8], kind: u32) -> Option<&'a [u8]> {
        let note = self.notes.iter().find(|note| note.owner == owner && note.kind == kind);
        note.map(|note| note.descriptor)
    }

    /// Copies the segments into guest memory, each at its load address.
    pub(super) fn put(&self, placer: &mut Placer<'_>) -> Result<(), Error> {
        for segment in &self.segments {
            let range = placer.put_at("image segment", segment.phys, segment.bytes, segment.len)?;
            if !segment.writable {
                placer.mark_read_only(range);
            }
        }
        Ok(())
    }

    /// The load address of a link address.
    pub(super) fn to_physical(&self, virt: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|s| virt.wrapping_sub(s.virt) < s.len)?;
        Some(segment.phys + (virt - segment.virt))
    }

    /// Does a segment lie there in memory?
    pub(super) fn is_loaded(&self, phys: u64) -> bool {
        self.segments.iter().any(|s| phys.wrapping_sub(s.phys) < s.len)
    }

    /// Where a processor without paging enters: the entry point itself where a segment is
    /// loaded there, else the load address of what is linked there.
    pub(super) fn physical_entry(&self) -> Result<u32, Error> {
        let entry = if self.is_loaded(self.entry) {
            self.entry
        } else {
            self.to_physical(self.entry).ok_or_else(|| self.entry_outside())?
        };
        u32::try_from(entry).map_err(|_| {
            let problem = format!("its entry point {entry:#x} is beyond 32 bits");
            Error::unsupported(FORMAT, problem)
        })
    }

    pub(super) fn entry_outside(&self) -> Error {
        bad(format!("its entry point {:#x} is in none of its segments", self.entry))
    }

    /// Each segment's two addresses.
    pub(super) fn mappings(&self) -> Result<Vec<Mapping>, Error> {
        let mut mappings = Vec::with_capacity(self.segments.len());
        for &Segment { virt, phys, len, .. } in &self.segments {
            if (virt ^ phys) & 0xFFF != 0 {
                return Err(Error::unsupported(
                    FORMAT,
                    format!(
                        "a segment linked at {virt:#x} is loaded at {phys:#x}, another offset in its page, which page tables cannot express"
                    ),
                ));
            }
            mappings.push(Mapping { virt, phys, len });
        }
        Ok(mappings)
    }
}

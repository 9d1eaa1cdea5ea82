//! Names and source lines for addresses of the guest's code, from ELF files.

use addr2line::gimli::{Dwarf, EndianSlice, LittleEndian, SectionId};
use object::elf::SHF_COMPRESSED;
use object::{Object, ObjectSection, SectionFlags};
use serde::Serialize;

use super::functions::{Table, demangled};

pub(super) type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// A place in the guest's code, as its programmer knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The function's name, demangled.
    pub function: String,
    /// Bytes from the function's start.
    pub offset: u64,
    /// Source file.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
    /// The functions that the line was inlined from, the innermost first.
    pub inlined: Vec<String>,
}

impl Place {
    /// " (mem.c:41)", where that is known.
    pub(super) fn source(&self) -> String {
        let (Some(file), Some(line)) = (&self.file, self.line) else { return String::new() };
        format!(" ({}:{line})", file.rsplit('/').next().unwrap_or(file))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{:#x}{}", self.function, self.offset, self.source())
    }
}

/// One file's symbols.
pub(super) struct Module<'a> {
    functions: Table,
    lines: Option<addr2line::Context<Bytes<'a>>>,
    pub(super) file: object::File<'a>,
}

/// The symbols of all files.
#[derive(Default)]
pub struct Symbols<'a> {
    modules: Vec<Module<'a>>,
}

impl<'a> Symbols<'a> {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds those of an ELF file whose addresses are `offset` lower than the guest's. False
    /// where it is no ELF file; one without symbols adds none.
    pub fn add(&mut self, file: &'a [u8], offset: u64) -> bool {
        let Ok(parsed) = object::File::parse(file) else { return false };
        let functions = Table::new(&parsed, file, offset);
        self.modules.push(Module { functions, lines: lines(&parsed), file: parsed });
        true
    }

    /// Has a file debug sections that are compressed? They are not read.
    pub fn are_compressed(&self) -> bool {
        self.modules.iter().any(|module| is_compressed(&module.file))
    }

    /// How many functions are known.
    pub fn functions(&self) -> usize {
        self.modules.iter().map(|module| module.functions.len()).sum()
    }

    /// What lies at a linear address.
    pub fn at(&self, address: u64) -> Option<Place> {
        self.modules.iter().find_map(|module| module.at(address))
    }

    /// Where the function starts that `address` lies in.
    pub(super) fn function_start(&self, address: u64) -> Option<u64> {
        self.at(address).map(|place| address.wrapping_sub(place.offset))
    }

    /// Each file with the address in it that `address` of the guest stands for.
    pub(super) fn linked(&self, address: u64) -> impl Iterator<Item = (&Module<'a>, u64)> {
        self.modules.iter().map(move |module| (module, module.functions.linked(address)))
    }
}

impl Module<'_> {
    fn at(&self, address: u64) -> Option<Place> {
        let (name, offset) = self.functions.find(address)?;
        let linked = self.functions.linked(address);
        let location = self.lines.as_ref().and_then(|it| it.find_location(linked).ok().flatten());
        let file = location.as_ref().and_then(|it| it.file).map(str::to_owned);
        let line = location.and_then(|it| it.line);
        let inlined = self.inlined(linked).unwrap_or_default();
        Some(Place { function: name.to_owned(), offset, file, line, inlined })
    }

    /// All frames at an address but the outermost, which is the function itself.
    fn inlined(&self, linked: u64) -> Option<Vec<String>> {
        let mut frames = self.lines.as_ref()?.find_frames(linked).skip_all_loads().ok()?;
        let mut names = Vec::new();
        while let Ok(Some(frame)) = frames.next() {
            let name = frame.function.and_then(|it| it.raw_name().ok().map(|it| demangled(&it)));
            names.push(name.unwrap_or_else(|| "?".to_owned()));
        }
        names.pop();
        Some(names)
    }
}

fn is_compressed(file: &object::File<'_>) -> bool {
    let flags = file.section_by_name(".debug_info").map(|section| section.flags());
    matches!(flags, Some(SectionFlags::Elf { sh_flags, .. }) if (sh_flags & SHF_COMPRESSED).0 != 0)
}

fn lines<'a>(file: &object::File<'a>) -> Option<addr2line::Context<Bytes<'a>>> {
    if is_compressed(file) {
        return None;
    }
    let section = |id: SectionId| -> Result<Bytes<'a>, ()> {
        let data = file.section_by_name(id.name()).and_then(|section| section.data().ok());
        Ok(EndianSlice::new(data.unwrap_or(&[]), LittleEndian))
    };
    let dwarf = Dwarf::load(section).ok()?;
    addr2line::Context::from_dwarf(dwarf).ok()
}

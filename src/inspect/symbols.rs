//! Names and source lines for addresses of the guest's code, from ELF files.

use std::collections::BTreeMap;

use addr2line::gimli::{Dwarf, EndianSlice, LittleEndian, SectionId};
use object::elf::PT_LOAD;
use object::read::elf::ProgramHeader;
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
use serde::Serialize;

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
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{:#x}", self.function, self.offset)?;
        if let (Some(file), Some(line)) = (&self.file, self.line) {
            let name = file.rsplit('/').next().unwrap_or(file);
            write!(f, " ({name}:{line})")?;
        }
        Ok(())
    }
}

/// One file's symbols.
pub(super) struct Module<'a> {
    /// What is added to the file's addresses for the guest's.
    offset: u64,
    functions: BTreeMap<u64, (u64, String)>,
    /// Where code also lies before paging is on: linked at `.0`, loaded at `.1`, bytes.
    aliases: Vec<(u64, u64, u64)>,
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
        self.modules.push(Module::new(parsed, file, offset));
        true
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
        self.modules.iter().map(move |module| (module, module.linked(address)))
    }
}

impl<'a> Module<'a> {
    fn new(file: object::File<'a>, bytes: &'a [u8], offset: u64) -> Self {
        let mut functions = BTreeMap::new();
        for symbol in file.symbols() {
            // Assembly often leaves its labels without a type.
            let is_code = matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Label)
                || symbol.kind() == SymbolKind::Unknown && in_text(&file, &symbol);
            let Some(name) = symbol.name().ok().filter(|name| is_code && !name.is_empty()) else {
                continue;
            };
            let better = |old: &(u64, String)| old.0 == 0 && symbol.size() > 0;
            if functions.get(&symbol.address()).is_none_or(better) {
                functions.insert(symbol.address(), (symbol.size(), name.to_owned()));
            }
        }
        let aliases = aliases(bytes);
        Self { offset, functions, aliases, lines: lines(&file), file }
    }

    /// The file's own address for one of the guest's.
    fn linked(&self, address: u64) -> u64 {
        let address = address.wrapping_sub(self.offset);
        let alias = self.aliases.iter().find(|(_, at, len)| address.wrapping_sub(*at) < *len);
        alias.map_or(address, |(link, at, _)| address - at + link)
    }

    fn at(&self, address: u64) -> Option<Place> {
        let address = self.linked(address);
        let (start, (size, name)) = self.functions.range(..=address).next_back()?;
        let offset = address - start;
        // A symbol without a size, as assembly has them, reaches to the next one.
        if *size > 0 && offset >= *size || *size == 0 && !in_section(&self.file, *start, address) {
            return None;
        }
        let location = self.lines.as_ref().and_then(|it| it.find_location(address).ok().flatten());
        let function = format!("{:#}", rustc_demangle::demangle(name));
        let file = location.as_ref().and_then(|it| it.file).map(str::to_owned);
        Some(Place { function, offset, file, line: location.and_then(|it| it.line) })
    }
}

fn in_text<'a>(file: &object::File<'a>, symbol: &object::Symbol<'a, '_>) -> bool {
    symbol
        .section_index()
        .and_then(|index| file.section_by_index(index).ok())
        .is_some_and(|section| section.kind() == object::SectionKind::Text)
}

/// Do both lie in the same section?
fn in_section(file: &object::File<'_>, start: u64, address: u64) -> bool {
    let holds = |section: &object::Section<'_, '_>, at: u64| {
        at.wrapping_sub(section.address()) < section.size()
    };
    file.sections().any(|section| holds(&section, start) && holds(&section, address))
}

fn lines<'a>(file: &object::File<'a>) -> Option<addr2line::Context<Bytes<'a>>> {
    let section = |id: SectionId| -> Result<Bytes<'a>, ()> {
        let data = file.section_by_name(id.name()).and_then(|section| section.data().ok());
        Ok(EndianSlice::new(data.unwrap_or(&[]), LittleEndian))
    };
    let dwarf = Dwarf::load(section).ok()?;
    addr2line::Context::from_dwarf(dwarf).ok()
}

/// Segments that are loaded elsewhere than they are linked.
fn aliases(bytes: &[u8]) -> Vec<(u64, u64, u64)> {
    use object::elf::{FileHeader32, FileHeader64};
    fn of<H: object::read::elf::FileHeader<Endian = object::Endianness>>(
        bytes: &[u8],
    ) -> Option<Vec<(u64, u64, u64)>> {
        let header = H::parse(bytes).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, bytes).ok()?;
        let loads = segments.iter().filter(|it| it.p_type(endian) == PT_LOAD).map(|it| {
            let word = |value: H::Word| -> u64 { value.into() };
            (word(it.p_vaddr(endian)), word(it.p_paddr(endian)), word(it.p_memsz(endian)))
        });
        Some(loads.filter(|(link, load, _)| link != load).collect())
    }
    let aliases = of::<FileHeader64<object::Endianness>>(bytes)
        .or_else(|| of::<FileHeader32<object::Endianness>>(bytes));
    aliases.unwrap_or_default()
}

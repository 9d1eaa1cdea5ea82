//! What is done about a guest that died.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How far an autopsy goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AutopsyLevel {
    /// None.
    Off,
    /// What the machine still has when the guest is dead.
    Fast,
    /// Where that is not enough (AMD-V, after a triple fault) the guest runs a second time,
    /// stepped up to its end.
    Full,
    /// As full, but a second run only where the first took less than two seconds.
    #[default]
    Auto,
}

/// A file with symbols of the guest's code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SymbolFile {
    /// An ELF file.
    pub path: PathBuf,
    /// What is added to its addresses, which wrap.
    pub offset: u64,
}

impl std::str::FromStr for SymbolFile {
    type Err = String;

    /// `FILE[,[-]OFFSET]`
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, offset) = match text.rsplit_once(',') {
            Some((path, offset)) => match offset.strip_prefix('-') {
                Some(below) => (path, super::parse_address(below)?.wrapping_neg()),
                None => (path, super::parse_address(offset)?),
            },
            None => (text, 0),
        };
        if path.is_empty() {
            return Err("symbols need a file: FILE[,OFFSET]".to_owned());
        }
        Ok(Self { path: path.into(), offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbol_files_have_an_offset() {
        let parse = |text: &str| text.parse::<SymbolFile>();
        assert_eq!(parse("a.elf"), Ok(SymbolFile { path: "a.elf".into(), offset: 0 }));
        assert_eq!(parse("a,0x10"), Ok(SymbolFile { path: "a".into(), offset: 16 }));
        let below = SymbolFile { path: "a".into(), offset: 0x10_u64.wrapping_neg() };
        assert_eq!(parse("a,-0x10"), Ok(below));
        assert!(parse("").is_err() && parse(",0").is_err() && parse("a,b").is_err());
    }
}

//! `--strict`: the rules, as they are named.

use serde::Serialize;

/// The rules of strict mode: what ends a guest that could go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Strict {
    /// Port I/O that nothing claims.
    pub io: bool,
    /// An access where neither memory nor a device is.
    pub mmio: bool,
    /// An MSR that KVM does not know, or a value that it refuses.
    pub msr: bool,
    /// A write to a read-only segment of an ELF image.
    pub text: bool,
    /// A use of page zero.
    pub null: bool,
}

impl Strict {
    /// Every rule.
    pub const ALL: Self = Self { io: true, mmio: true, msr: true, text: true, null: true };
}

impl std::str::FromStr for Strict {
    type Err = String;

    /// `all`, `none`, or rules separated by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut strict = Self::default();
        for rule in text.split(',') {
            match rule.trim() {
                "io" => strict.io = true,
                "mmio" => strict.mmio = true,
                "msr" => strict.msr = true,
                "text" => strict.text = true,
                "null" => strict.null = true,
                "all" => strict = Self::ALL,
                "none" if text.trim() == "none" => {}
                other => {
                    return Err(format!(
                        "{other:?} is no rule of strict mode: io, mmio, msr, text, null, or all"
                    ));
                }
            }
        }
        Ok(strict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_by_name() {
        assert_eq!("all".parse(), Ok(Strict::ALL));
        assert_eq!("io,mmio,msr,text,null".parse(), Ok(Strict::ALL));
        assert_eq!("none".parse(), Ok(Strict::default()));
        let two = Strict { io: true, null: true, ..Strict::default() };
        assert_eq!("null, io".parse(), Ok(two));
        for bad in ["", "io,", "everything", "io,none"] {
            assert!(bad.parse::<Strict>().is_err(), "{bad}");
        }
    }
}

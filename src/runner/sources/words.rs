//! Words as a shell would split them: quotes, backslashes, and the one command that
//! kvm-unit-tests use between backticks.

use std::time::{SystemTime, UNIX_EPOCH};

/// Words, and what of them only a shell could tell.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    /// The words, with a space between them.
    pub(super) text: String,
    /// The same one by one.
    pub(super) words: Vec<String>,
    /// Commands between backticks that are not run.
    pub(super) commands: Vec<String>,
}

pub(super) fn split(text: &str) -> Result<Words, String> {
    let mut found = Words::default();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (' ' | '\t' | '\n', None) => found.words.extend(word.take()),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(open)) if c == open => quote = None,
            ('\\', None | Some('"')) => {
                let next = chars.next().ok_or("a backslash at the end")?;
                word.get_or_insert_default().push(next);
            }
            ('`', None | Some('"')) => {
                let command: String = chars.by_ref().take_while(|c| *c != '`').collect();
                match command.trim() {
                    "date +%s" => word.get_or_insert_default().push_str(&now().to_string()),
                    other => found.commands.push(other.to_owned()),
                }
            }
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        return Err(format!("a {open} is not closed in {text:?}"));
    }
    found.words.extend(word);
    found.text = found.words.join(" ");
    Ok(found)
}

/// Seconds since the epoch, as date(1) prints them.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backticks() {
        let words = |text: &str| split(text).unwrap().words;
        assert_eq!(words("a 'b c' \"d 'e\" f\\ g"), ["a", "b c", "d 'e", "f g"]);
        assert_eq!(words("''"), [""]);
        assert!(words("  ").is_empty());
        assert_eq!(split("'cpuid'").unwrap().text, "cpuid");
        let date = words("\"10 `date +%s`\"");
        assert!(date[0].strip_prefix("10 ").unwrap().parse::<u64>().unwrap() > 1_700_000_000);
        assert_eq!(split("`rm -rf /`").unwrap().commands, ["rm -rf /"]);
        assert!(split("'a").is_err() && split("a\\").is_err());
    }
}

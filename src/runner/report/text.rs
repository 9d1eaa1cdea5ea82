//! Words of guests and of files, as they may stand on a terminal.

use std::time::Duration;

/// A name on one line: control characters are shown, not sent.
pub fn one_line(text: &str) -> String {
    shown(text, is_hidden)
}

/// Output of a guest: lines stay lines, other control characters are shown, not sent.
pub(super) fn lines(text: &str) -> String {
    shown(&text.replace("\r\n", "\n"), |c| is_hidden(c) && !matches!(c, '\n' | '\t'))
}

/// Control characters, and the two of the basic plane that are none (XML 1.0, 2.2, Char).
fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}')
}

fn shown(text: &str, hidden: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// `text` ends a line.
pub(super) fn ended(text: String) -> String {
    if text.is_empty() || text.ends_with('\n') { text } else { text + "\n" }
}

/// A time for people, in seconds.
pub(super) fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.3}s", time.as_secs_f64()),
        seconds @ 10..60 => format!("{seconds}s"),
        seconds => format!("{}m {}s", seconds / 60, seconds % 60),
    }
}

/// One thing or several.
pub(super) fn plural(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(one_line("a\x1b[2J\nb"), "a\\u{1b}[2J\\nb");
        assert_eq!(one_line("a\u{FFFF}\u{FFFD}"), "a\\u{ffff}\u{FFFD}");
        assert_eq!(lines("a\x1b[2J\r\nb\tc\0"), "a\\u{1b}[2J\nb\tc\\u{0}");
    }
}

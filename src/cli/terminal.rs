//! The terminal: raw input while a guest runs, and the way back from it, whatever happens.

use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd;
use std::sync::Mutex;

/// What the terminal was set to, while it is raw.
static SAVED: Mutex<Option<libc::termios>> = Mutex::new(None);

/// Standard input is raw for as long as this lives.
pub(super) struct Raw(());

impl Raw {
    /// Makes standard input raw, if it is a terminal and this process is in its foreground
    /// (a background process would be stopped for trying).
    pub(super) fn new() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || !in_foreground(stdin.as_raw_fd()) {
            return Ok(None);
        }
        // SAFETY: all zero is a valid termios, and tcgetattr fills it in.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the file descriptor is open, `settings` outlives the call.
        if unsafe { libc::tcgetattr(stdin.as_raw_fd(), &mut settings) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if let Ok(mut saved) = SAVED.lock() {
            *saved = Some(settings);
        }
        // Every key goes to the guest, none is a signal or a line editor's. Output stays as
        // it is: most guests end a line with "\n" alone.
        settings.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN);
        settings.c_iflag &= !(libc::IXON | libc::ICRNL | libc::INLCR | libc::IGNCR | libc::ISTRIP);
        settings.c_cc[libc::VMIN] = 1;
        settings.c_cc[libc::VTIME] = 0;
        set(&settings)?;
        Ok(Some(Self(())))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back; does nothing where it is not raw. The panic hook calls it too.
pub(super) fn restore() {
    // A lock that is held means that another thread is doing this.
    if let Ok(mut saved) = SAVED.try_lock()
        && let Some(settings) = saved.take()
    {
        let _ = set(&settings); // there is nobody left to tell
    }
}

fn set(settings: &libc::termios) -> io::Result<()> {
    // SAFETY: `settings` came from tcgetattr.
    match unsafe { libc::tcsetattr(io::stdin().as_raw_fd(), libc::TCSANOW, settings) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn in_foreground(fd: i32) -> bool {
    // SAFETY: neither call has preconditions.
    unsafe { libc::tcgetpgrp(fd) == libc::getpgrp() }
}

/// Columns of the terminal on this descriptor; of one that does not say, the usual 80.
pub(super) fn width(of: &impl AsRawFd) -> usize {
    const USUAL: usize = 80;
    // SAFETY: all zero is a valid winsize.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills in `size`, which outlives it; a bad descriptor is an error.
    let known = unsafe { libc::ioctl(of.as_raw_fd(), libc::TIOCGWINSZ, &mut size) } == 0;
    if known && size.ws_col > 0 { size.ws_col.into() } else { USUAL }
}

/// Is it a terminal that does what escape sequences say?
pub(super) fn takes_escapes(of: &impl IsTerminal) -> bool {
    of.is_terminal() && std::env::var_os("TERM").is_none_or(|it| it != "dumb")
}

/// Are colours welcome there? On a terminal that has them, unless NO_COLOR says otherwise
/// (no-color.org: where it is not empty).
pub(super) fn takes_colour(of: &impl IsTerminal) -> bool {
    takes_escapes(of) && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty())
}

/// What a key does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// It goes to the guest.
    Guest(u8),
    /// It was the beginning of an escape.
    Nothing,
    /// Ctrl-A x: the machine ends.
    Quit,
}

/// Finds the escapes among the keys: Ctrl-A x and Ctrl-A Ctrl-A, as in QEMU and screen.
#[derive(Debug, Default)]
pub(super) struct Escapes {
    after_ctrl_a: bool,
}

impl Escapes {
    const CTRL_A: u8 = 1;

    pub(super) fn key(&mut self, key: u8) -> Key {
        if !std::mem::take(&mut self.after_ctrl_a) {
            self.after_ctrl_a = key == Self::CTRL_A;
            return if self.after_ctrl_a { Key::Nothing } else { Key::Guest(key) };
        }
        match key {
            b'x' | b'X' => Key::Quit,
            Self::CTRL_A => Key::Guest(Self::CTRL_A),
            _ => Key::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(input: &[u8]) -> Vec<Key> {
        let mut escapes = Escapes::default();
        input.iter().map(|key| escapes.key(*key)).collect()
    }

    #[test]
    fn escapes() {
        assert_eq!(keys(b"a\x03"), [Key::Guest(b'a'), Key::Guest(3)]);
        assert_eq!(keys(b"\x01x"), [Key::Nothing, Key::Quit]);
        assert_eq!(keys(b"\x01\x01x"), [Key::Nothing, Key::Guest(1), Key::Guest(b'x')]);
        assert_eq!(keys(b"\x01qx"), [Key::Nothing, Key::Nothing, Key::Guest(b'x')]);
    }
}

//! A guest on a real terminal: its keys, the escapes, and the terminal's settings before and
//! after every kind of end. Needs /dev/kvm but for the refusal.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{BINARY, Dir, default_signals, kill, need_kvm, wait, wait_until};

/// A pseudo-terminal with ringfence in its foreground.
struct Terminal {
    keys: File,
    /// Keeps the terminal's settings when ringfence has gone.
    other_side: OwnedFd,
    screen: Arc<Mutex<Vec<u8>>>,
    /// Ends when the other side is closed everywhere and all is read.
    reader: thread::JoinHandle<()>,
    before: Settings,
    child: Child,
}

#[derive(Debug, PartialEq, Eq)]
struct Settings([libc::tcflag_t; 4], [libc::cc_t; libc::NCCS]);

fn settings(terminal: &impl AsRawFd) -> Settings {
    // SAFETY: all zero is a valid termios, tcgetattr fills it in; the file is open.
    let termios = unsafe {
        let mut termios: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &mut termios), 0);
        termios
    };
    let libc::termios { c_iflag, c_oflag, c_cflag, c_lflag, c_cc, .. } = termios;
    Settings([c_iflag, c_oflag, c_cflag, c_lflag], c_cc)
}

fn open_pty() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: the two places outlive the call, the rest may be null; then both are owned once.
    unsafe {
        assert_eq!(libc::openpty(&mut ours, &mut theirs, none, none.cast(), none.cast()), 0);
        libc::fcntl(ours, libc::F_SETFD, libc::FD_CLOEXEC);
        (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
    }
}

impl Terminal {
    fn new(line: &str) -> Self {
        Self::of_kind("xterm", line)
    }

    /// `kind` as terminfo(5) has it.
    fn of_kind(kind: &str, line: &str) -> Self {
        let (keys, other_side) = open_pty();
        let file = || other_side.try_clone().unwrap();
        let mut command = Command::new(BINARY);
        command.args(line.split_whitespace()).stdin(file()).stdout(file()).stderr(file());
        default_signals(command.env("TERM", kind));
        // SAFETY: both calls are async-signal-safe; they make the pty the controlling terminal.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let before = settings(&other_side);
        let child = command.spawn().unwrap();
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut from, to) = (keys.try_clone().unwrap(), screen.clone());
        let reader = thread::spawn(move || {
            let mut buffer = [0; 256];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                to.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Self { keys, other_side, screen, reader, before, child }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        assert!(wait_until(|| self.text().contains(text)), "no {text:?} in {:?}", self.text());
    }

    fn types(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).unwrap();
    }

    fn is_raw(&self) -> bool {
        let Settings([_, _, _, local], _) = settings(&self.other_side);
        local & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }

    /// It ends with this exit code, and the terminal is as it was.
    #[track_caller]
    fn ends(mut self, code: i32) -> String {
        let Some(status) = wait(&mut self.child) else {
            kill(self.child.id() as i32, libc::SIGKILL);
            panic!("it hangs: {:?}", self.text());
        };
        assert_eq!(status.code(), Some(code), "{status}: {:?}", self.text());
        assert_eq!(settings(&self.other_side), self.before);
        drop(self.other_side);
        self.reader.join().unwrap();
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }
}

#[test]
fn keys_go_to_the_guest_one_by_one() {
    need_kvm();
    let mut terminal = Terminal::new("run @echo --timeout 100s");
    terminal.shows("ready");
    assert!(terminal.is_raw());
    terminal.types(b"hello\n");
    terminal.shows("echo: hello");
    // The return key is not made a newline, and nothing is echoed by the terminal.
    terminal.types(b"a\rb\nquit\n");
    let text = terminal.ends(0);
    assert_eq!(text, "ready\r\necho: hello\r\necho: ab\r\necho: quit\r\n");
}

#[test]
fn the_escape_ends_the_machine() {
    need_kvm();
    // A guest that reads, one that never does, one that sleeps in the kernel.
    for (guest, says) in [("echo", "ready"), ("spin", "spin"), ("echo-irq", "ready")] {
        let mut terminal = Terminal::new(&format!("run @{guest} --timeout 100s"));
        terminal.shows(says);
        terminal.types(b"abc\x01");
        terminal.types(b"x");
        let text = terminal.ends(130);
        assert!(text.contains("ringfence: ended by signal 2"), "{text:?}");
    }
}

#[test]
fn control_keys_reach_the_guest() {
    need_kvm();
    let mut terminal = Terminal::new("run @echo --timeout 100s");
    terminal.shows("ready");
    // Ctrl-C, Ctrl-Z, Ctrl-\, Ctrl-D, Ctrl-S, Ctrl-Q; Ctrl-A twice; an escape that is none.
    terminal.types(b"<\x03\x1a\x1c\x04\x13\x11\x01\x01\x01q>\n");
    terminal.shows("echo: <\x03\x1a\x1c\x04\x13\x11\x01>");
    terminal.types(b"quit\n");
    terminal.ends(0);
}

#[test]
fn the_terminal_comes_back_after_every_end() {
    need_kvm();
    for (line, code) in [
        ("run @hello", 0),
        ("run @exit-7", 7),
        ("run @triple-fault", 80),
        ("run @halt", 83),
        ("run @spin --timeout 300ms", 124),
        ("run @echo --timeout 300ms", 124),
        ("run @hello --cpus 5000", 78),
        ("run @hello --memory 1048576G", 71),
    ] {
        Terminal::new(line).ends(code);
    }
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let terminal = Terminal::new("run @spin --timeout 100s");
        terminal.shows("spin");
        assert!(terminal.is_raw());
        kill(terminal.child.id() as i32, signal);
        terminal.ends(128 + signal);
    }
}

#[test]
fn the_progress_line_of_tests_is_no_wider_than_the_terminal() {
    need_kvm();
    let terminal = Terminal::new("test @spin --timeout 5s");
    let size = libc::winsize { ws_row: 24, ws_col: 20, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the file is open, and the call reads `size` alone.
    let set = unsafe { libc::ioctl(terminal.keys.as_raw_fd(), libc::TIOCSWINSZ, &size) };
    assert_eq!(set, 0);
    let text = terminal.ends(1);
    let drawn: Vec<_> = text.split("\r\u{1b}[K").filter(|it| it.contains("done, ")).collect();
    let last = drawn.last().unwrap().lines().next().unwrap();
    assert!(last.chars().count() < 20, "{last:?}");
}

#[test]
fn a_terminal_that_knows_no_escapes_gets_none() {
    need_kvm();
    let text = Terminal::of_kind("dumb", "test @spin --timeout 1s").ends(1);
    assert!(text.contains("1 timed out") && !text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn refusals_leave_the_terminal_alone() {
    for (line, code) in [
        ("run @hello --kvm /nonexistent", 77),
        ("run /nonexistent", 66),
        ("run --frobnicate", 64),
        ("run @hello --kvm /nonexistent --serial null", 77),
    ] {
        Terminal::new(line).ends(code);
    }
}

#[test]
fn a_death_starts_a_line_of_its_own() {
    need_kvm();
    let dir = Dir::new();
    // mov al, 'u'; mov dx, 0x3F8; out dx, al; cli; hlt
    let image = dir.file("unfinished", [0xB0, b'u', 0xBA, 0xF8, 0x03, 0xEE, 0xFA, 0xF4]);
    let text = Terminal::new(&format!("run {} --entry real", image.display())).ends(83);
    assert!(text.starts_with("u\r\nringfence: "), "{text:?}");
}

#[test]
fn without_the_serial_line_the_terminal_stays_as_it_is() {
    need_kvm();
    let dir = Dir::new();
    let said = dir.join("said");
    let line = format!("run @spin --serial file:{} --timeout 100s", said.display());
    let mut terminal = Terminal::new(&line);
    assert!(wait_until(|| std::fs::read(&said).is_ok_and(|said| said == b"spin\n")));
    assert!(!terminal.is_raw());
    terminal.types(b"\x03"); // here the interrupt key is one
    terminal.ends(130);
}

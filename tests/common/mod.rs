//! What the integration tests share: the binary, run with a time limit on everything.
#![allow(dead_code)] // each test file uses its own part

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_ringfence");

/// When a process counts as hanging: no run here takes a second on a processor of its own, the
/// rest is for emulated machines and busy ones.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Nobody's user and group.
pub const NOBODY: u32 = 65534;

/// Fails where there is no KVM: a test that needs it and has none has not passed.
#[track_caller]
pub fn need_kvm() {
    if let Err(e) = ringfence::kvm::Kvm::open(Path::new("/dev/kvm")) {
        panic!("this test needs KVM: {}", ringfence::machine::chain(&e));
    }
}

/// `ringfence` with these arguments, its input empty, its output caught.
pub fn ringfence<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    let mut command = Command::new(BINARY);
    command.args(args);
    Run { command, input: Some(Vec::new()) }
}

/// Another program, found on the path.
pub fn program(name: &str) -> Run {
    Run { command: Command::new(name), input: Some(Vec::new()) }
}

/// The words of `line` as arguments; see [`ringfence`].
pub fn run(line: &str) -> Run {
    ringfence(line.split_whitespace())
}

/// A script for which `$R` is the binary: for what only a shell can say about files.
pub fn script(text: &str) -> Run {
    program("sh").arg("-c").arg(text).with(|command| _ = command.env("R", BINARY))
}

/// The same for bash, which the VT-x rig does not have.
pub fn bash(text: &str) -> Run {
    program("bash").arg("-c").arg(text).with(|command| _ = command.env("R", BINARY))
}

/// A process to be.
pub struct Run {
    command: Command,
    /// What it reads; `None`: its standard input stays open and empty.
    input: Option<Vec<u8>>,
}

impl Run {
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn input(mut self, bytes: &[u8]) -> Self {
        self.input = Some(bytes.to_vec());
        self
    }

    pub fn open_input(mut self) -> Self {
        self.input = None;
        self
    }

    pub fn in_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Changes the command itself.
    pub fn with(mut self, change: impl FnOnce(&mut Command)) -> Self {
        change(&mut self.command);
        self
    }

    pub fn start(mut self) -> Running {
        let command = &mut self.command;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        default_signals(command);
        // A group of its own, so that a script that hangs goes with what it started.
        let mut child = command.process_group(0).spawn().expect("the binary starts");
        let mut stdin = child.stdin.take();
        if let Some(input) = self.input {
            let mut stdin = stdin.take().expect("piped");
            // A guest may end before it has read all.
            thread::spawn(move || stdin.write_all(&input));
        }
        let stdout = Collector::new(child.stdout.take().expect("piped"));
        let stderr = Collector::new(child.stderr.take().expect("piped"));
        Running { child, stdin, stdout, stderr, began: Instant::now() }
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn end(self) -> Ended {
        self.start().end()
    }

    /// Runs it to its end, which is to be this exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Ended {
        self.end().expect(code)
    }
}

/// Whoever runs the tests may ignore signals (a shell does for what it starts with `&`), and
/// what is ignored stays so.
pub fn default_signals(command: &mut Command) {
    let reset = || {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
            // SAFETY: the call has no preconditions.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: signal(2) is async-signal-safe.
    unsafe { command.pre_exec(reset) };
}

/// Reads a pipe to its end.
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: thread::JoinHandle<()>,
}

impl Collector {
    fn new(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let to = bytes.clone();
        let thread = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                to.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Self { bytes, thread }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn all(self) -> Vec<u8> {
        self.thread.join().unwrap();
        std::mem::take(&mut self.bytes.lock().unwrap())
    }
}

/// A process under way.
pub struct Running {
    pub child: Child,
    stdin: Option<std::process::ChildStdin>,
    stdout: Collector,
    stderr: Collector,
    began: Instant,
}

impl Running {
    /// Waits until it has written `text` to standard output.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        let said = || String::from_utf8_lossy(&self.stdout.so_far()).contains(text);
        let there = wait_until(said);
        let (out, err) = (self.stdout.so_far(), self.stderr.so_far());
        let (out, err) = (String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
        assert!(there, "it did not say {text:?}, but {out:?} and {err:?}");
        self
    }

    /// What it has written to standard error.
    pub fn told(&self) -> String {
        String::from_utf8_lossy(&self.stderr.so_far()).into_owned()
    }

    pub fn writes(mut self, bytes: &[u8]) -> Self {
        self.stdin.as_mut().expect("open_input()").write_all(bytes).unwrap();
        self
    }

    pub fn signal(self, signal: i32) -> Self {
        kill(self.child.id() as i32, signal);
        self
    }

    #[track_caller]
    pub fn end(mut self) -> Ended {
        let pid = self.child.id() as i32;
        let status = wait(&mut self.child);
        if status.is_none() {
            kill(-pid, libc::SIGKILL);
            let _ = self.child.wait();
        }
        let took = self.began.elapsed();
        drop(self.stdin);
        let stdout = self.stdout.all();
        let stderr = String::from_utf8_lossy(&self.stderr.all()).into_owned();
        let status = status.unwrap_or_else(|| {
            panic!("it hangs, having said {:?} and {stderr:?}", String::from_utf8_lossy(&stdout))
        });
        Ended { status, stdout, stderr, took }
    }
}

/// A process that has ended.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub took: Duration,
}

impl Ended {
    /// The exit code; a process that a signal ended has failed the test.
    #[track_caller]
    pub fn code(&self) -> i32 {
        assert_eq!(self.status.signal(), None, "{self:?}");
        self.status.code().unwrap()
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        self
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error is one line of ringfence's that contains `text`.
    #[track_caller]
    pub fn one_line(self, text: &str) -> Self {
        assert!(is_one_line(&self.stderr) && self.stderr.contains(text), "no {text:?}: {self:?}");
        self
    }

    #[track_caller]
    pub fn silent(self) -> Self {
        assert_eq!(self.stderr, "", "{self:?}");
        self
    }
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tail = self.out().chars().rev().take(2000).collect::<Vec<_>>();
        let tail: String = tail.into_iter().rev().collect();
        write!(f, "{} after {:?}; out {tail:?}; err {:?}", self.status, self.took, self.stderr)
    }
}

pub fn is_one_line(stderr: &str) -> bool {
    stderr.starts_with("ringfence: ") && stderr.ends_with('\n') && stderr.lines().count() == 1
}

/// Waits for a process, [`LIMIT`] at most.
pub fn wait(child: &mut Child) -> Option<ExitStatus> {
    let mut status = None;
    wait_until(|| {
        status = child.try_wait().expect("a child of ours");
        status.is_some()
    });
    status
}

/// Waits until `done`, [`LIMIT`] at most.
pub fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while !done() {
        if began.elapsed() > LIMIT {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

pub fn kill(pid: i32, signal: i32) {
    // SAFETY: the call has no preconditions; the process is a child not yet waited for.
    unsafe { libc::kill(pid, signal) };
}

pub fn is_root() -> bool {
    // SAFETY: the call has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// A directory that goes with the test.
pub struct Dir(PathBuf);

impl Dir {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringfence-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A file of zeroes that takes no room.
    pub fn sparse(&self, name: &str, len: u64) -> PathBuf {
        let path = self.join(name);
        fs::File::create(&path).unwrap().set_len(len).unwrap();
        path
    }

    /// The binary, where any user may run it.
    pub fn binary(&self) -> PathBuf {
        let path = self.join("ringfence");
        // Not by this process: a child that starts meanwhile would hold the copy open for
        // writing, and it could not be run.
        assert!(Command::new("cp").arg(BINARY).arg(&path).status().unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// The names in it.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A report, which is as its schema has it.
#[track_caller]
pub fn report(text: &[u8]) -> Value {
    let report: Value = serde_json::from_slice(text).expect("the report is JSON");
    let schema: Value = serde_json::from_slice(&run("help report").expect(0).stdout).unwrap();
    let validator = jsonschema::validator_for(&schema).expect("the schema is one");
    let errors: Vec<_> = validator.iter_errors(&report).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:#?}\n{report:#}");
    report
}

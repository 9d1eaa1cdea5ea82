//! The control socket through the binary: what a machine answers while its guest runs, and what
//! clients without manners can do to it.
//!
//! All of them are quick enough for RINGFENCE_TEST_SET=small, so they do not look at it.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Dir, LIMIT, Running, ringfence, wait_until};
use serde_json::{Value, json};

/// A machine that runs, with its socket.
struct Vm {
    running: Running,
    socket: PathBuf,
    _dir: Dir,
}

impl Vm {
    #[track_caller]
    fn start(args: &[&str]) -> Self {
        common::need_kvm();
        let dir = Dir::new();
        let socket = dir.join("vm");
        let control = format!("unix:{}", socket.display());
        let all = [&["run"], args, &["--timeout", "110s", "--control", &control]].concat();
        let running = ringfence(all).open_input().start();
        let there = wait_until(|| UnixStream::connect(&socket).is_ok());
        assert!(there, "no socket: {:?}", running.end());
        Self { running, socket, _dir: dir }
    }

    /// The guest that polls its serial line: an endless stream of exits from one function.
    fn echo(args: &[&str]) -> Self {
        let mut vm = Self::start(&[&["@echo"], args].concat());
        vm.running = vm.running.says("ready\n");
        vm
    }

    fn client(&self, words: &[&str]) -> common::Run {
        ringfence(["control"]).arg(&self.socket).with(|command| _ = command.args(words))
    }

    #[track_caller]
    fn ask(&self, command: &str) -> Value {
        let answer = self.client(&[command, "--json"]).expect(0);
        serde_json::from_slice(&answer.stdout).unwrap_or(Value::Null)
    }

    fn connect(&self) -> UnixStream {
        connect(&self.socket)
    }

    #[track_caller]
    fn stop(self) -> common::Ended {
        self.client(&["stop"]).expect(0).silent();
        let ended = self.running.end().expect(128 + libc::SIGTERM);
        assert!(!self.socket.exists());
        ended
    }
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream
}

/// One line there, one line back.
#[track_caller]
fn exchange(stream: &mut BufReader<UnixStream>, line: &str) -> Value {
    stream.get_mut().write_all(line.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{answer:?}: {e}"))
}

fn count(line: &Value) -> u64 {
    line["count"].as_u64().unwrap()
}

/// Is it as `help report` has it?
#[track_caller]
fn is_valid(stats: &Value) {
    let mut schema: Value = serde_json::from_str(ringfence::machine::report::SCHEMA).unwrap();
    let part = schema["properties"]["stats"].take();
    let schema = json!({ "allOf": [part], "$defs": schema["$defs"] });
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> = validator.iter_errors(stats).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:#?}\n{stats:#}");
}

#[test]
fn a_running_machine_says_what_it_does() {
    let vm = Vm::echo(&["--memory", "64M"]);
    let mode = vm.socket.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let status = vm.ask("status");
    assert_eq!(status["state"], "running");
    assert_eq!(status["memory"], 64 << 20);
    assert_eq!(status["pid"], vm.running.child.id());
    assert_eq!(status["image"]["path"], "@echo");
    assert_eq!(status["backend"], ringfence::kvm::Backend::detect().name());
    assert_eq!(status["vcpus"].as_array().unwrap().len(), 1);
    assert!(status["vcpus"][0]["rip"].as_u64().unwrap() >= 0x10_0000, "{status}");
    let text = vm.client(&[]).expect(0).out();
    assert!(text.starts_with("running for ") && text.contains("vCPU 0  running at 0x1"), "{text}");
    vm.stop();
}

#[test]
fn exits_are_counted_from_the_request_on() {
    let vm = Vm::echo(&[]);
    let first = vm.ask("stats");
    is_valid(&first["stats"]);
    assert!(first["exits"]["pio_out"].as_u64().unwrap() >= 6, "{first}");
    assert_eq!((&first["from_start"], &first["silent"]), (&json!(false), &json!([])));
    let mut stats = Value::Null;
    // The guest polls its line all the time.
    assert!(wait_until(|| {
        stats = vm.ask("stats");
        stats["stats"]["exits"].as_u64().unwrap() >= 100
    }));
    is_valid(&stats["stats"]);
    assert!(stats["exits"]["pio_in"].as_u64() > first["exits"]["pio_in"].as_u64());
    let stats = &stats["stats"];
    let places = stats["places"].as_array().unwrap();
    let com1 = places.iter().find(|it| it["address"] == 0x3FD).expect("COM1's line status");
    assert_eq!((&com1["exit"], &com1["device"]), (&json!("pio_in"), &json!("com1")));
    let all = stats["exits"].as_u64().unwrap();
    let kinds = stats["kinds"].as_array().unwrap();
    assert_eq!(kinds.iter().map(count).sum::<u64>(), all);
    assert!(count(com1) * 2 > all && count(&stats["functions"][0]) * 2 > all, "{stats}");
    assert!(stats["user_seconds"].as_f64().unwrap() > 0.0);
    let kernel = stats["kernel"]["vcpus"][0].as_array().unwrap();
    assert!(kernel.iter().any(|it| it["name"] == "exits"), "{stats}");
    let text = vm.client(&["stats"]).expect(0).out();
    for words in ["exits since the start", "pio_in     0x3fd com1", "KVM's counters of vCPU 0"] {
        assert!(text.contains(words), "{words} is not in\n{text}");
    }
    // Only --stats prints them at the end too.
    assert!(!vm.stop().stderr.contains("exits by kind"));
}

#[test]
fn with_stats_all_is_counted_and_names_are_the_guests() {
    let vm = Vm::start(&["@profile", "--cmdline", "how=spin", "--stats"]);
    let vm = Vm { running: vm.running.says("begin"), ..vm };
    let mut figures = Value::Null;
    let put_text = |it: &&Value| it["function"] == "put_text";
    assert!(wait_until(|| {
        figures = vm.ask("stats");
        figures["stats"]["functions"].as_array().unwrap().iter().any(|it| put_text(&it))
    }));
    is_valid(&figures["stats"]);
    assert_eq!(figures["from_start"], true);
    let functions = figures["stats"]["functions"].as_array().unwrap();
    // "begin" and a newline; before each byte it looks whether there is room.
    assert_eq!(count(functions.iter().find(put_text).unwrap()), 12);
    assert_eq!(figures["exits"]["pio_out"], 6);
    let mut status = vm.ask("status");
    let inner = "inner";
    assert!(wait_until(|| {
        let named = status["vcpus"][0]["function"].as_str().is_some_and(|it| it.contains(inner));
        status = if named { status.take() } else { vm.ask("status") };
        named
    }));
    assert!(vm.stop().stderr.contains("exits by kind"));
}

#[test]
fn every_vcpu_answers_one_that_is_halted_too() {
    // The first processor waits for a third one, for ever; the second has halted.
    let args = ["@smp", "--cmdline", "cpus=3 end=exit"];
    let vm = Vm::start(&args);
    let vm = Vm { running: vm.running.says("apic_id=0"), ..vm };
    let is = |status: &Value| [0, 1].map(|id| status["vcpus"][id]["state"].clone());
    assert!(wait_until(|| is(&vm.ask("status")) == ["running", "halted-for-ever"]));
    let figures = vm.ask("stats");
    assert_eq!(figures["silent"], json!([]));
    assert_eq!(figures["stats"]["kernel"]["vcpus"].as_array().unwrap().len(), 2);
    vm.stop();
}

#[test]
fn pause_and_resume() {
    let vm = Vm::echo(&[]);
    let pio = |figures: &Value| figures["exits"]["pio_in"].as_u64().unwrap();
    vm.ask("pause");
    vm.ask("pause");
    assert_eq!(vm.ask("status")["state"], "paused");
    let before = pio(&vm.ask("stats"));
    let pause = Duration::from_secs(2);
    std::thread::sleep(pause);
    assert_eq!(pio(&vm.ask("stats")), before);
    vm.ask("resume");
    assert_eq!(vm.ask("status")["state"], "running");
    assert!(wait_until(|| pio(&vm.ask("stats")) > before));
    // No exit took the time that the vCPU stood still.
    let kinds = vm.ask("stats")["stats"]["kinds"].take();
    let mut kinds = kinds.as_array().unwrap().iter();
    let interrupted = kinds.find(|it| it["exit"] == "interrupted").unwrap();
    assert!(interrupted["user_seconds"].as_f64().unwrap() < pause.as_secs_f64() / 2.0);
    // One that stands still ends too.
    vm.ask("pause");
    vm.stop();
}

#[test]
fn a_restarted_guest_keeps_its_socket_and_its_figures() {
    let vm = Vm::start(&["@reset-restart", "--on-reset", "restart"]);
    assert!(wait_until(|| vm.ask("status")["restarts"].as_u64().unwrap() >= 2));
    let mut figures = vm.ask("stats");
    let first = figures["exits"]["pio_out"].as_u64().unwrap();
    assert!(first > 20, "{figures}");
    assert!(wait_until(|| {
        figures = vm.ask("stats");
        figures["stats"]["exits"].as_u64().unwrap() > 50
    }));
    assert!(figures["exits"]["pio_out"].as_u64().unwrap() > first);
    vm.stop();
}

#[test]
fn the_guest_is_gdbs_to_pause_where_there_is_one() {
    let dir = Dir::new();
    let gdb = format!("unix:{}", dir.join("gdb").display());
    let vm = Vm::start(&["@echo", "--gdb", &gdb, "--gdb-wait"]);
    assert_eq!(dir.join("gdb").metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    vm.client(&["pause"]).expect(71).one_line("--gdb");
    assert_eq!(vm.ask("stats")["exits"].get("pio_out"), None);
    let vcpu = vm.ask("status")["vcpus"][0].take();
    assert_eq!((&vcpu["state"], &vcpu["rip"]), (&"stopped".into(), &0x10_0000.into()));
    vm.stop();
}

#[test]
fn requests_are_answered_in_order_and_garbage_is_refused() {
    let vm = Vm::echo(&[]);
    let mut stream = BufReader::new(vm.connect());
    for bad in ["\n", "garbage\n", "{}\n", "{\"command\": \"dance\"}\n", "[1,\n", "\0\u{7f}\n"] {
        let answer = exchange(&mut stream, bad);
        let why = answer["error"].as_str().unwrap();
        assert!(why.contains(r#"{"command": "status"}"#), "{answer}");
    }
    let two = "{\"command\":\"status\"}\r\n{\"command\":\"stats\"}\n";
    assert_eq!(exchange(&mut stream, two)["ok"]["state"], "running");
    assert!(exchange(&mut stream, "")["ok"]["stats"].is_object());
    let mut last = vm.connect();
    last.write_all(b"{\"command\":\"status\"}").unwrap();
    last.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    last.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("{\"ok\":") && said.ends_with("}\n"), "{said}");
    vm.stop();
}

/// Memory of ringfence's own, in KiB; the guest's is a memfd, and does not count here.
fn own_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn clients_without_manners_harm_nobody() {
    let vm = Vm::echo(&[]);
    vm.ask("stats");
    let before = own_memory(vm.running.child.id());
    // A line without an end is refused, and the connection with it.
    let mut long = vm.connect();
    let sent = (0..1024).take_while(|_| long.write_all(&[b'x'; 4096]).is_ok()).count();
    assert!(sent < 1024, "4 MiB were taken");
    // Some ask and do not read, ...
    let mut deaf = Vec::new();
    for _ in 0..8 {
        let mut stream = vm.connect();
        stream.set_nonblocking(true).unwrap();
        while stream.write_all(&b"{\"command\":\"status\"}\n".repeat(1000)).is_ok() {}
        deaf.push(stream);
    }
    // ... some come and go, some come and stay.
    let silent: Vec<_> = (0..200).map(|_| UnixStream::connect(&vm.socket)).collect();
    for _ in 0..200 {
        drop(UnixStream::connect(&vm.socket));
    }
    assert_eq!(vm.ask("status")["state"], "running");
    let after = own_memory(vm.running.child.id());
    assert!(after < before + 8192, "{before} KiB, then {after} KiB");
    vm.stop();
    drop((deaf, silent));
}

#[test]
fn sockets_that_cannot_be_are_one_line() {
    let dir = Dir::new();
    let run = |path: &Path| {
        ringfence(["run", "@hello", "--control"]).arg(format!("unix:{}", path.display()))
    };
    run(Path::new("/no/such/dir/vm")).expect(71).one_line("/no/such/dir/vm: No such file");
    let file = dir.file("file", "text");
    run(&file).expect(71).one_line("no socket is there, and was left alone");
    assert_eq!(fs::read(&file).unwrap(), b"text");
    let live = UnixListener::bind(dir.join("live")).unwrap();
    run(&dir.join("live")).expect(71).one_line("in use");
    drop(live);
    // Nobody listens there any more.
    run(&dir.join("live")).expect(0);
    assert_eq!(dir.names(), ["file"]);
    let gone = ringfence(["control"]).arg(dir.join("live")).expect(71);
    gone.one_line("is it running, with --control?");
    for bad in ["tcp:localhost:1", "vm", "unix:"] {
        let ended = ringfence(["run", "@hello", "--control", bad]).expect(64);
        assert!(ended.stderr.contains("unix:PATH"), "{ended:?}");
    }
}

#[test]
fn help_says_what_there_is() {
    let text = ringfence(["help", "control"]).expect(0).out();
    for word in ["status", "stats", "stop", "pause", "resume", "counted_seconds", "0600"] {
        assert!(text.contains(word), "{word}");
    }
}

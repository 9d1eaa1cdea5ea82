//! The command line as scripts know it: help, exit codes, reports, files and pipes, signals.
//! Those that run a guest need /dev/kvm, and fail without.

mod common;

use std::fs;
use std::time::Duration;

use common::{Dir, bash, need_kvm, report, ringfence, run, script};
use ringfence::verdict::{EXIT_CODES, exit_code_table};
use serde_json::Value;

#[test]
fn help_and_version() {
    let version = run("--version").expect(0).silent().out();
    assert_eq!(version, format!("ringfence {}\n", env!("CARGO_PKG_VERSION")));
    for (line, said) in [
        ("--help", "ringfence help exit-codes"),
        ("help", "Commands:"),
        ("help run", "--if-no-kvm"),
        ("run --help", "--if-no-kvm"),
        ("help guests", "--json"),
        ("help doctor", "77"),
        ("help boot", "multiboot2"),
        ("guests", "@hello-long"),
        ("guests hello-real", "512 bytes"),
        ("guests @hello-real", "512 bytes"),
    ] {
        let text = run(line).expect(0).silent().out();
        assert!(text.contains(said), "{line}: no {said:?} in {text}");
        assert!(!text.contains('\x1b'), "{line}: colour without a terminal");
    }
}

#[test]
fn exit_codes_are_those_of_the_one_table() {
    let shown = run("help exit-codes").expect(0).silent().out();
    assert_eq!(shown, exit_code_table());
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = fs::read_to_string(readme).unwrap();
    assert!(readme.contains(&shown), "README.md has another table than:\n{shown}");
    for row in EXIT_CODES {
        let meaning = row.meaning.strip_prefix("128+n: ").unwrap_or(row.meaning);
        assert!(shown.contains(meaning), "{row:?} in {shown}");
    }
}

#[test]
fn the_doctor_finds_what_run_finds() {
    let runs = run("run -q @hello").end().code() == 0;
    let ended = run("doctor --json").expect(if runs { 0 } else { 77 }).silent();
    let found: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(found["usable"], runs);
    assert_eq!(found["backend"], ringfence::kvm::Backend::detect().name());
    let text = run("doctor").end().out();
    for finding in found["findings"].as_array().unwrap() {
        let topic = finding["topic"].as_str().unwrap();
        assert!(text.contains(topic), "no {topic} in {text}");
    }
    assert!(!text.contains('\x1b'), "colour without a terminal: {text}");
    let refused = run("doctor --kvm /nonexistent").expect(77).silent().out();
    assert!(refused.contains("there is no /nonexistent") && refused.contains("No guest can run"));
    assert!(run("doctor --kvm /dev/null").expect(77).out().contains("version 12"));
}

#[test]
fn guests_as_json() {
    let listed: Value = serde_json::from_slice(&run("guests --json").expect(0).stdout).unwrap();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), ringfence::guests::GUESTS.len());
    let spin = listed.iter().find(|guest| guest["name"] == "spin").unwrap();
    assert_eq!(spin["exit_code"], 124);
}

#[test]
fn mistakes_of_usage() {
    for line in [
        "",
        "frobnicate",
        "run",
        "run --frobnicate @hello",
        "run --memory much @hello",
        "run --memory 0 @hello",
        "run --cpus one @hello",
        "run --timeout soon @hello",
        "run --entry virtual @hello",
        "run --boot floppy @hello",
        "run --irqchip some @hello",
        "run --serial telnet @hello",
        "run --module ,args @hello",
        "run --exit-code mine @hello",
        "run --json @hello",
        "run -q -v @hello",
        "run @hello @hello",
        "guests no-such-guest",
        "help no-such-topic",
    ] {
        let ended = run(line).expect(64);
        assert!(!ended.stderr.is_empty(), "{line}: silent");
        assert!(ended.stdout.is_empty(), "{line}: {ended:?}");
    }
}

#[test]
fn a_dry_run_shows_the_machine() {
    let line = "run --dry-run @hello-pvh --kvm /nonexistent --memory 4G --timeout 10s";
    let text = run(line).expect(0).silent().out();
    for said in [
        "PVH, ELF32",
        "4096 MiB",
        "Full",
        "one two",
        "@hello-real first arg",
        "10s",
        "0x0100000000..0x0140000000  Ram",
        "hvm_start_info",
        "com1",
        "Protected mode",
        "rip 0x0000000000100000",
        "cr0 0x11 PE ET",
    ] {
        assert!(text.contains(said), "no {said:?} in {text}");
    }
    let plan: Value =
        serde_json::from_slice(&run(line).arg("--json").expect(0).silent().stdout).unwrap();
    assert_eq!(plan["config"]["memory"], 4_u64 << 30);
    assert_eq!(plan["config"]["timeout"], 10.0);
    assert_eq!(plan["config"]["modules"][0]["args"], "first arg");
    assert_eq!(plan["irqchip"], "full");
    assert_eq!(plan["cmdline"], "one two");
    assert_eq!(plan["memory_map"]["ram"], 4_u64 << 30);
    assert_eq!(plan["loaded"]["protocol"], "pvh");
    assert_eq!(plan["loaded"]["cpu"]["regs"]["rip"], 0x10_0000);
    assert!(!plan["loaded"]["placed"].as_array().unwrap().is_empty());
    let devices = plan["devices"].as_array().unwrap();
    assert!(devices.iter().any(|device| device["name"] == "com1" && device["base"] == 0x3F8));
}

#[test]
fn a_description_file_under_the_command_line() {
    need_kvm();
    let dir = Dir::new();
    let toml = "image = '@exit-0'\ncmdline = 'code=7'\nmemory = '32M'\ntimeout = '60s'\n";
    let json = r#"{ "image": "@exit-0", "cmdline": "code=7", "memory": "32M", "timeout": "60s" }"#;
    for (name, text) in [("ringfence.toml", toml), ("machine.json", json)] {
        let path = dir.file(name, text);
        let with = |more: &str| {
            ringfence(["run", "--config"]).arg(&path).with(|command| {
                command.args(more.split_whitespace());
            })
        };
        assert!(with("").expect(7).out().contains("exit code=7"));
        let ended = with("--cmdline code=9 --serial null --report -").expect(9);
        let record = report(&ended.stdout);
        assert_eq!((&record["guest_code"], &record["memory"]), (&9.into(), &(32 << 20).into()));
        // Another image keeps what the file says of the machine.
        assert!(with("@exit-501").expect(7).out().contains("code=7"));
    }
}

#[test]
fn paths_in_a_description_are_relative_to_it() {
    need_kvm();
    let dir = Dir::new();
    dir.file("boot.bin", ringfence::guests::find("hello-real").unwrap().image);
    let path = dir.file("m.toml", "image = 'boot.bin'\nserial = 'file:said'\ntimeout = '60s'\n");
    ringfence(["run", "--config"]).arg(&path).in_dir("/".as_ref()).expect(0).silent();
    assert_eq!(fs::read(dir.join("said")).unwrap(), b"hello from real mode at 0x7c00\n");
}

#[test]
fn bad_descriptions() {
    let dir = Dir::new();
    for (name, text, said) in [
        ("a.toml", "image = '@hello'\nram = 1\n", "unknown field"),
        ("b.toml", "\nimage = \n", "at line 2"),
        ("c.json", "{ \"image\": 3 }", "invalid type"),
        ("d.toml", "image = '@hello'\nmemory = 'much'\n", "memory"),
        ("e.toml", "image = '@hello'\nmodules = [',x']\n", "module"),
        ("f.toml", "image = '@hello'\ntimeout = '-1s'\n", "timeout"),
    ] {
        let path = dir.file(name, text);
        ringfence(["run", "--config"]).arg(path).expect(78).one_line(said);
    }
    run("run --config /nonexistent").expect(66).one_line("machine description");
}

#[test]
fn verbose_and_quiet() {
    need_kvm();
    run("run @hello").expect(0).silent();
    run("run @exit-7").expect(7).silent();
    let told = run("run -v @hello").expect(0).stderr;
    assert!(told.contains("flat binary, entered in long mode") && told.contains("success"));
    assert!(run("run -vv @exit-7").expect(7).stderr.contains("guest failed with code 7"));
    run("run @triple-fault --autopsy=off").expect(80).one_line("triple fault");
    run("run -q @triple-fault").expect(80).silent();
    run("run -q --kvm /nonexistent @hello").expect(77).one_line("no usable KVM");
}

#[test]
fn exit_codes_as_qemu_has_them() {
    need_kvm();
    for (guest, code) in [("exit-0", 1), ("exit-7", 15), ("exit-big", (300 * 2 + 1) & 0xFF)] {
        run(&format!("run --exit-code=qemu @{guest}")).expect(code);
    }
    run("run --exit-code=qemu @poweroff").expect(0);
    run("run --exit-code=qemu @triple-fault").expect(80);
}

#[test]
fn a_report_on_every_kind_of_end() {
    need_kvm();
    let dir = Dir::new();
    let path = dir.join("report.json");
    let bad = dir.file("bad.bin", [0; 600]);
    let bad = format!("run {}", bad.display());
    for (line, code, verdict) in [
        ("run @hello", 0, "success"),
        ("run @exit-7", 7, "failed"),
        ("run @exit-big", 63, "failed"),
        ("run @triple-fault", 80, "triple-fault"),
        ("run @panic", 82, "panic"),
        ("run @halt", 83, "halted"),
        ("run @reset-cf9", 84, "reset"),
        ("run @spin --timeout 200ms", 124, "timeout"),
        (&*bad, 65, "bad-image"),
        ("run /nonexistent", 66, "no-image"),
        ("run @hello --kvm /nonexistent", 77, "no-kvm"),
        ("run @hello --kvm /nonexistent --if-no-kvm=skip", 0, "skipped"),
        ("run @hello --cpus 0", 78, "bad-config"),
    ] {
        let ended = run(line).arg("--report").arg(&path).expect(code);
        let record = report(&fs::read(&path).expect("a report"));
        assert_eq!(record["verdict"], verdict, "{line}: {record:#}");
        assert_eq!(record["exit_code"], code, "{line}");
        if matches!(code, 64..) {
            let last = ended.stderr.lines().last().unwrap();
            let told = last.strip_prefix("ringfence: ").unwrap();
            assert_eq!(record["cause"], told, "{line}");
        }
    }
    assert_eq!(dir.names(), ["bad.bin", "report.json"], "parts of reports are left");
}

#[test]
fn what_a_report_says() {
    need_kvm();
    let ended = run("run @exit-big --memory 64M --serial null --report -").expect(63).silent();
    let record = report(&ended.stdout);
    assert_eq!(record["guest_code"], 300);
    assert_eq!(record["memory"], 64 << 20);
    assert_eq!(record["image"]["path"], "@exit-big");
    assert_eq!(record["image"]["protocol"], "flat");
    assert_eq!(record["backend"], ringfence::kvm::Backend::detect().name());
    assert!(record["exits"]["pio_out"].as_u64().unwrap() > 10, "{record:#}");
    assert!(record["serial"]["tail"].as_str().unwrap().contains("exit code=300"));
    // After the guest's own output.
    let out = run("run @hello --report -").expect(0).out();
    let (said, record) = out.split_at(out.find('{').unwrap());
    assert_eq!(said, "hello from long mode at 0x100000\n");
    assert_eq!(report(record.as_bytes())["serial"]["tail"], said);
}

#[test]
fn a_report_is_replaced_whole_or_not_at_all() {
    need_kvm();
    let dir = Dir::new();
    let path = dir.file("r", "before");
    run("run @hello --report").arg(&path).expect(0);
    report(&fs::read(&path).unwrap());
    run("run @hello --report /nonexistent/r").expect(71).one_line("cannot write the report");
    let told = script("$R run -q @hello --serial null --report /dev/stderr").expect(0).stderr;
    report(told.as_bytes());
    script("$R run @hello --serial null --report - >/dev/full").expect(71).one_line("report");
}

#[test]
fn without_kvm() {
    let fails = run("run --kvm /nonexistent @hello").expect(77).one_line("/nonexistent");
    assert_eq!(fails.out(), "");
    let skips = run("run --if-no-kvm=skip --kvm /nonexistent @hello").expect(0);
    assert!(skips.one_line("ringfence: skipped: ").stdout.is_empty());
    // Only the lack of KVM is skipped.
    run("run --if-no-kvm=skip --kvm /nonexistent /nonexistent").expect(66);
    run("run --if-no-kvm=fail --kvm /nonexistent @hello").expect(77);
}

#[test]
fn ends_that_the_caller_chose() {
    need_kvm();
    run("run @halt --on-halt success").expect(0).silent();
    run("run @reset-i8042 --on-reset success").expect(0).silent();
    let line =
        "run @reset-i8042 --on-reset restart --autopsy=off --timeout 4s --report - --serial null";
    let ended = run(line).expect(124).one_line("timed out after 4s");
    assert!(ended.took >= Duration::from_secs(4), "{ended:?}");
    assert!(report(&ended.stdout)["restarts"].as_u64().unwrap() >= 2, "{ended:?}");
}

#[test]
fn serial_output_goes_where_it_is_sent() {
    need_kvm();
    let dir = Dir::new();
    let path = dir.join("said");
    for guest in ["hello", "pio", "debugcon", "hello-pvh"] {
        let piped = run(&format!("run @{guest}")).expect(0).stdout;
        assert!(!piped.is_empty());
        run(&format!("run @{guest} --serial file:{}", path.display())).expect(0).silent();
        assert_eq!(fs::read(&path).unwrap(), piped, "{guest}");
        assert!(run(&format!("run @{guest} --serial null")).expect(0).silent().stdout.is_empty());
        let mut machine = ringfence::Machine::builder(format!("@{guest}"));
        let row = ringfence::guests::find(guest).unwrap();
        if row.args.contains(&"protected") {
            machine = machine.entry(ringfence::x86::Mode::Protected);
        } else if row.args.contains(&"long") {
            machine = machine.entry(ringfence::x86::Mode::Long);
        } else {
            continue; // its modules are the command line's matter
        }
        let mut machine = machine.timeout(common::LIMIT).build().unwrap();
        assert!(machine.run().is_success());
        assert_eq!(machine.serial(), piped, "{guest}");
    }
    run("run @hello --serial file:/nonexistent/said").expect(71).one_line("/nonexistent/said");
    run("run @hello --trace /dev/full").expect(71).one_line("trace to /dev/full");
    run("run @hello --serial file:/dev/full").expect(71).one_line("No space left on device");
    script("$R run @hello >/dev/full").expect(71).one_line("standard output");
    // The report has the exit code that the process ends with.
    let ended =
        run("run @spin --serial null --timeout 1s --profile /dev/full --report -").expect(71);
    let report = report(&ended.stdout);
    assert_eq!((&report["exit_code"], &report["verdict"]), (&71.into(), &"timeout".into()));
}

#[test]
fn readers_that_leave_or_never_read() {
    need_kvm();
    let restarts = "$R run @reset-i8042 --on-reset restart";
    let left = bash(&format!("{restarts} --timeout 100s | head -c1; exit ${{PIPESTATUS[0]}}"));
    let left = left.expect(141).one_line("ended by signal 13");
    assert_eq!(left.out(), "r");
    // More than a pipe holds, and nobody reads: the vCPU waits in the write.
    let dir = Dir::new();
    let fifo = dir.join("fifo");
    let text = format!(
        "mkfifo {0}; sleep 100 <{0} & head -c 65000 /dev/zero >{0} & {restarts} --autopsy=off --timeout 4s >{0}; \
         code=$?; kill %1; exit $code",
        fifo.display()
    );
    bash(&text).expect(124).one_line("timed out");
}

#[test]
fn nobody_is_told_of_a_mistake_and_nothing_breaks() {
    for (text, code) in [
        ("$R help no-such-topic 2>/dev/full", 64),
        ("$R guests no-such-guest 2>/dev/full", 64),
        ("$R run --frobnicate 2>/dev/full", 64),
        ("$R run /nonexistent 2>/dev/full", 66),
        ("$R run /nonexistent 2>&-", 66),
        ("$R run /nonexistent --report /nonexistent/r 2>/dev/full", 71),
        ("$R help exit-codes >/dev/full", 71),
        ("$R help run >/dev/full", 71),
        ("$R help >/dev/full", 71),
        ("$R guests >/dev/full", 71),
        ("$R doctor >/dev/full", 71),
        ("$R run --dry-run @hello >/dev/full", 71),
        ("$R help report | true; exit ${PIPESTATUS[0]}", 0),
        ("$R guests --json | true; exit ${PIPESTATUS[0]}", 0),
        ("$R run --dry-run --json @hello | true; exit ${PIPESTATUS[0]}", 0),
    ] {
        let ended = bash(text).expect(code);
        assert!(!ended.stderr.contains("panicked"), "{text}: {ended:?}");
    }
}

#[test]
fn where_the_debugger_finds_the_guest_need_not_be_heard() {
    need_kvm();
    let dir = Dir::new();
    script("$R run @hello --gdb unix:socket 2>/dev/full").in_dir(dir.path()).expect(0);
}

#[test]
fn signals_end_it_with_a_report() {
    need_kvm();
    let dir = Dir::new();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        // Twice: the guest spins in the processor, or sleeps in the kernel.
        for guest in ["@spin", "@echo-irq"] {
            let path = dir.join("report.json");
            let line = format!("run {guest} --timeout 110s --report");
            let says = if guest == "@spin" { "spin" } else { "ready" };
            let under_way = run(&line).arg(&path).open_input().start().says(says);
            let ended = under_way.signal(signal).end().expect(128 + signal);
            let record = report(&fs::read(&path).expect("a report"));
            assert_eq!(record["verdict"], "signal", "{ended:?}");
            assert_eq!(record["exit_code"], 128 + signal);
            ended.one_line(&format!("ended by signal {signal}"));
            fs::remove_file(&path).unwrap();
        }
    }
    assert_eq!(dir.names(), [""; 0]);
}

#[test]
fn a_signal_that_is_ignored_stays_so() {
    need_kvm();
    let text = "trap '' HUP; exec $R run @echo --timeout 110s";
    let under_way = script(text).open_input().start().says("ready").signal(libc::SIGHUP);
    under_way.writes(b"quit\n").end().expect(0);
}

#[test]
fn several_at_once() {
    need_kvm();
    let started: Vec<_> = (0..4).map(|_| run("run @smp --timeout 100s").start()).collect();
    for running in started {
        let ended = running.end().expect(0);
        assert!(ended.out().contains("arrived=2"), "{ended:?}");
    }
}

#[test]
fn a_conversation_through_pipes() {
    need_kvm();
    let under_way = run("run @echo --timeout 100s").open_input().start().says("ready\n");
    let under_way = under_way.writes(b"one\n").says("echo: one\n");
    let ended = under_way.writes(b"two words\nquit\n").end().expect(0).silent();
    assert_eq!(ended.out(), "ready\necho: one\necho: two words\necho: quit\n");
    // All of it before the guest has started.
    let lines: String = (0..500).map(|n| format!("line {n}\n")).collect();
    let ended = run("run @echo --timeout 100s").input((lines.clone() + "quit\n").as_bytes());
    let echoed: String = lines.lines().map(|line| format!("echo: {line}\n")).collect();
    assert_eq!(ended.expect(0).out(), format!("ready\n{echoed}echo: quit\n"));
}

#[test]
fn standard_files_that_are_closed_or_empty() {
    need_kvm();
    for text in [
        "$R run @hello </dev/null",
        "$R run @hello <&-",
        "$R run @hello 2>&-",
        "$R run @hello <&- 2>&-",
    ] {
        let ended = script(text).expect(0).silent();
        assert_eq!(ended.out(), "hello from long mode at 0x100000\n", "{text}");
    }
    // A guest that reads finds nothing, and waits.
    for text in [
        "$R run @echo --autopsy=off --timeout 4s </dev/null",
        "$R run @echo --autopsy=off --timeout 4s <&-",
    ] {
        let ended = script(text).expect(124).one_line("timed out");
        assert_eq!(ended.out(), "ready\n", "{text}");
    }
    let dir = Dir::new();
    let path = dir.join("r");
    script(&format!("$R run @exit-7 --report {} >&-", path.display())).expect(7).silent();
    let record = report(&fs::read(&path).unwrap());
    assert!(record["serial"]["tail"].as_str().unwrap().contains("code=7"));
    script("$R run @exit-7 <&- >&- 2>&-").expect(7);
    script("$R run @triple-fault 2>&-").expect(80);
}

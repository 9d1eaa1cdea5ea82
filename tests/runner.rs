//! The test runner as scripts and CI systems know it: where tests come from, what becomes of them,
//! every report read by a parser, and what is left when a run is killed. Needs /dev/kvm.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use common::{Dir, Run, kill, need_kvm, ringfence, wait_until};
use quick_junit::{Report, TestCaseStatus};
use serde_json::Value;

/// One test of every kind of end, with names that no format takes as they are.
const EVERY_END: &str = r#"
[defaults]
timeout = "60s"
[[test]]
name = "good <&\"' #1 ]]> \u001b[2J\r\n"
image = "@hello"
[[test]]
name = "dead as expected"
image = "@triple-fault"
expect = "triple-fault"
[[test]]
name = "fails"
image = "@exit-7"
tags = ["bad"]
[[test]]
name = "dies"
image = "@panic"
tags = ["bad"]
[[test]]
name = "hangs"
image = "@spin"
timeout = "1s"
retries = 1
tags = ["bad"]
[[test]]
name = "says that it is skipped"
image = "@exit-0"
cmdline = "code=77"
[[test]]
name = "not wanted"
image = "@hello"
skip = "a reason; <with> \"marks\" # and more"
[[test]]
name = "missing"
image = "nowhere.elf"
tags = ["bad"]
"#;

/// `ringfence test` whose memory of durations is the directory's own.
fn runner(dir: &Dir, args: &str) -> Run {
    let words = ["test"].into_iter().chain(args.split_whitespace());
    let cache = dir.path().to_owned();
    ringfence(words).in_dir(dir.path()).with(move |command| {
        command.env("XDG_CACHE_HOME", cache).env_remove("GITHUB_ACTIONS");
    })
}

fn tests_in(dir: &Dir, text: &str) -> PathBuf {
    dir.file("ringfence-tests.toml", text)
}

/// An image that ringfence carries, as a file.
fn image(dir: &Dir, file: &str, guest: &str) -> PathBuf {
    dir.file(file, ringfence::guests::find(guest).unwrap().image)
}

fn json_lines(text: &[u8]) -> Vec<Value> {
    let whole = text.is_empty() || text.ends_with(b"\n");
    assert!(whole, "the last line is not whole: {:?}", String::from_utf8_lossy(text));
    let text = std::str::from_utf8(text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn tests_of(lines: &[Value]) -> Vec<&Value> {
    lines.iter().filter(|line| line["event"] == "test").collect()
}

/// A TAP 14 stream, read by its grammar: the plan, and (ok, description, directive) a test.
fn tap(text: &str) -> (Option<usize>, Vec<(bool, String, String)>) {
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("TAP version 14"), "{text}");
    let (mut plan, mut tests, mut in_yaml) = (None, Vec::new(), false);
    for line in lines {
        if in_yaml {
            in_yaml = line != "  ...";
            let (_, value) = line.trim_start().split_once(": ").unwrap_or(("", "0"));
            serde_json::from_str::<Value>(value).expect(line); // each scalar is JSON
        } else if line == "  ---" {
            in_yaml = true;
        } else if let Some(count) = line.strip_prefix("1..") {
            plan = Some(count.parse().unwrap());
        } else if !line.starts_with("Bail out!") {
            let (ok, rest) = match line.strip_prefix("not ") {
                Some(rest) => (false, rest),
                None => (true, line),
            };
            let rest = rest.strip_prefix(&format!("ok {} - ", tests.len() + 1)).expect(line);
            let (description, directive) = rest.split_once(" # ").unwrap_or((rest, ""));
            assert!(!description.replace("\\#", "").contains('#'), "{line}");
            tests.push((ok, description.to_owned(), directive.to_owned()));
        }
    }
    (plan, tests)
}

#[test]
fn every_end_in_every_format() {
    need_kvm();
    let dir = Dir::new();
    tests_in(&dir, EVERY_END);
    let run = runner(&dir, "--junit j.xml --tap t.tap --json l.jsonl --github");
    let ended = run.expect(1);
    let said = ended.out();
    assert!(!said.contains('\x1b'), "escapes of a name, or colour on a pipe: {said:?}");
    for words in [
        "8 tests: 2 passed, 1 failed, 1 died (panic 1), 1 timed out, 1 could not be run, 2 skipped",
        "1 skipped: a reason; <with> \"marks\" # and more",
        "--- output of fails",
        "exit code=7",
        "--- autopsy of hangs, attempt 2 of 2",
        "::error title=dies::guest died: panic",
    ] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    let report = fs::read_to_string(dir.join("j.xml")).unwrap();
    let report = Report::deserialize_from_str(&report).unwrap();
    assert_eq!((report.tests, report.failures, report.errors), (8, 3, 1));
    let cases: Vec<_> = report.test_suites.iter().flat_map(|suite| &suite.test_cases).collect();
    let skipped = cases.iter().filter(|case| matches!(case.status, TestCaseStatus::Skipped { .. }));
    assert_eq!(skipped.count(), 2);
    assert!(cases.iter().any(|case| case.name.as_str().starts_with("good <&\"' #1 ]]>")));

    let (plan, tests) = tap(&fs::read_to_string(dir.join("t.tap")).unwrap());
    assert_eq!((plan, tests.len()), (Some(8), 8));
    assert_eq!(tests.iter().filter(|(ok, ..)| !ok).count(), 4);
    assert_eq!(tests.iter().filter(|(.., directive)| directive.starts_with("SKIP ")).count(), 2);

    let lines = json_lines(&fs::read(dir.join("l.jsonl")).unwrap());
    let statuses: BTreeSet<_> =
        tests_of(&lines).iter().map(|test| test["status"].as_str().unwrap()).collect();
    let expected = ["broken", "died", "failed", "passed", "skipped", "timed-out"];
    assert_eq!(statuses, expected.into());
    let end = lines.last().unwrap();
    assert_eq!(
        (&end["event"], &end["exit_code"], &end["total"]),
        (&"end".into(), &1.into(), &8.into())
    );
    let hangs = tests_of(&lines).into_iter().find(|test| test["name"] == "hangs").unwrap().clone();
    assert_eq!(hangs["attempts"].as_array().unwrap().len(), 2);
    assert!(hangs["attempts"][1]["autopsy"].as_str().unwrap().contains("still running after 1s"));
}

#[test]
fn what_is_chosen() {
    need_kvm();
    let dir = Dir::new();
    tests_in(&dir, EVERY_END);
    let list = |args: &str| runner(&dir, &format!("--list {args}")).expect(0).out();
    assert_eq!(list("-f tag:bad -f !hangs"), "fails\ndies\nmissing\n");
    assert_eq!(list("--filter d*s"), "dies\n");
    assert_eq!(list("-f =hangs"), "hangs\n");
    let all: BTreeSet<_> = list("").lines().map(str::to_owned).collect();
    let mut parts = BTreeSet::new();
    for shard in ["1/3", "2/3", "3/3"] {
        for name in list(&format!("--shard {shard}")).lines() {
            assert!(parts.insert(name.to_owned()), "{name:?} is in two shards");
        }
    }
    assert_eq!(parts, all);
    runner(&dir, "-f =fails").expect(1);
    runner(&dir, "-f dead").expect(0);
    // A shard may be empty; a filter that fits nothing is a mistake, and so is a run of nothing.
    runner(&dir, "-f dead --shard 2/2 --list").expect(0);
    let empty = runner(&dir, "-f dead --shard 2/2 --junit j.xml").expect(0);
    assert!(empty.stderr.contains("this shard is empty"), "{empty:?}");
    assert!(fs::read_to_string(dir.join("j.xml")).unwrap().contains("tests=\"0\""));
    assert!(list("-f good*").contains("\\u{1b}[2J"), "{}", list("-f good*"));
    runner(&dir, "-f nothing").expect(66).one_line("none of the 8 tests");
    runner(&dir, "-f =not*wanted").expect(66);
}

#[test]
fn what_is_not_understood() {
    let dir = Dir::new();
    fs::create_dir(dir.join("empty")).unwrap();
    for (text, code, words) in [
        ("[[test]\n", 78, "at line 1"),
        ("[[test]]\nimage = '@hello'\nmemroy = '1G'\n", 78, "memroy"),
        ("[[test]]\nimage = '@hello'\nexpect = 'no-kvm'\n", 78, "is no verdict"),
        ("[[test]]\nimage = '@hello'\nexpect = 300\n", 78, "is no verdict"),
        ("[[test]]\nimage = 'none'\nexpect = 66\n", 78, "66 is no verdict"),
        ("[[test]]\nimage = '@hello'\nbackends = ['kvm']\n", 78, "no backend"),
        ("[[test]]\nimage = '@hello'\nbackends = []\n", 78, "none is named"),
        ("[[test]]\nimage = '@hello'\nserial = 'file:x'\n", 78, "serial"),
        ("[[test]]\nimage = '@hello'\ndevices = ['edu']\n", 78, "there is no \"edu\"; there are"),
        ("[[test]]\nimage = '@hello'\ndevices = ['irqchip=some']\n", 78, "no irqchip"),
        ("[[test]]\nimage = '@hello'\ndevice = ['com1']\n", 78, "`devices`"),
        ("[[test]]\nimage = '@hello'\ntimeout = '0s'\n", 78, "timeout"),
        ("[[test]]\nimage = '@hello'\nretries = -1\n", 78, "test 1"),
        ("[[test]]\nimage = '@hello'\n[[test]]\nimage = '@hello'\n", 78, "two tests are called"),
        ("[[test]]\nname = 'a'\n", 78, "no image"),
        ("[[tests]]\nname = 'a'\n", 78, "tests"),
        ("[defaults]\nname = 'a'\n", 78, "a name is a test's own"),
        ("", 66, "no [[test]]"),
    ] {
        tests_in(&dir, text);
        runner(&dir, "").expect(code).one_line(words);
    }
    tests_in(&dir, "[[test]]\nimage = '@hello'\n");
    for (args, code, words) in [
        ("nowhere", 66, "nowhere"),
        ("empty", 66, "there is no test in empty"),
        ("@hello @hello", 64, "two tests are called"),
        ("@hello --cpus 5000", 64, "bad value for cpus: 5000"),
        ("@hello --kvm /nonexistent", 77, "/nonexistent"),
        ("@hello --tap - --json -", 64, "only one report"),
        ("@hello --tap x --json ./x", 64, "one file"),
        ("@hello --json /nonexistent/x", 71, "cannot write"),
    ] {
        runner(&dir, args).expect(code).one_line(words);
    }
    tests_in(&dir, "[[test]]\nimage = '@hello'\n");
    let over = "ringfence-tests.toml --json ./ringfence-tests.toml";
    runner(&dir, over).expect(64).one_line("would overwrite it");
    for args in ["--shard 0/2", "--shard 3/2", "--shard a", "--jobs 0", "--repeat 0", "-f !"] {
        runner(&dir, &format!("@hello {args}")).expect(64);
    }
}

#[test]
fn reports_that_cannot_be_written() {
    need_kvm();
    let dir = Dir::new();
    for option in ["--junit", "--tap", "--json"] {
        let ended = runner(&dir, &format!("@hello {option} /dev/full")).expect(71);
        assert!(ended.stderr.contains("cannot write"), "{ended:?}");
        assert!(ended.out().contains("1 passed"), "{ended:?}");
        runner(&dir, &format!("@exit-7 {option} /dev/full")).expect(1);
    }
    // A reader of standard output that has seen enough is no failure of the tests.
    let text = format!(
        "cd {} && XDG_CACHE_HOME=. $R test @hello | true; exit ${{PIPESTATUS[0]}}",
        dir.path().display()
    );
    common::bash(&text).expect(0);
}

#[test]
fn one_report_may_go_to_standard_output() {
    need_kvm();
    let dir = Dir::new();
    let ended = runner(&dir, "@hello @hello-elf64 --json -").expect(0);
    assert_eq!(tests_of(&json_lines(&ended.stdout)).len(), 2);
    assert!(ended.stderr.contains("2 passed"));
    let ended = runner(&dir, "@hello --tap -").expect(0);
    assert_eq!(tap(&ended.out()).0, Some(1));
    let ended = runner(&dir, "@hello --junit -").expect(0);
    assert_eq!(Report::deserialize_from_str(&ended.out()).unwrap().tests, 1);
}

#[test]
fn a_test_that_passes_late_is_flaky_and_says_so() {
    need_kvm();
    let dir = Dir::new();
    image(&dir, "kernel.elf", "death-null-call");
    tests_in(&dir, "[[test]]\nimage = 'kernel.elf'\ncmdline = 'how=dead-loop'\ntimeout = '10s'\n");
    let running = runner(&dir, "--retries 1 --json l.jsonl --junit j.xml --nocapture").start();
    let running = running.says("dead-loop");
    // The first attempt has read its image; the second finds another.
    let other = image(&dir, "other", "hello-elf64");
    fs::rename(other, dir.join("kernel.elf")).unwrap();
    let ended = running.end().expect(0);
    assert!(ended.out().contains("1 passed (1 flaky)"), "{ended:?}");
    assert!(ended.out().contains("FLAKY"), "{ended:?}");
    let lines = json_lines(&fs::read(dir.join("l.jsonl")).unwrap());
    assert_eq!(tests_of(&lines)[0]["flaky"], true);
    let report = fs::read_to_string(dir.join("j.xml")).unwrap();
    assert!(report.contains("flakyFailure"), "{report}");
}

#[test]
fn the_first_failure_can_be_the_last() {
    need_kvm();
    let dir = Dir::new();
    let test = |name| format!("[[test]]\nname = '{name}'\nimage = '@exit-7'\n");
    tests_in(&dir, &["a", "b", "c"].map(test).concat());
    let ended = runner(&dir, "-j 1 --fail-fast --tap t.tap").expect(1);
    assert!(ended.out().contains("1 failed, 2 not run"), "{ended:?}");
    let text = fs::read_to_string(dir.join("t.tap")).unwrap();
    let (plan, tests) = tap(&text);
    assert_eq!((plan, tests.len()), (Some(3), 1));
    assert!(text.contains("Bail out!"));
}

#[test]
fn again_and_again() {
    need_kvm();
    let dir = Dir::new();
    let ended = runner(&dir, "@hello --repeat 3").expect(0);
    assert!(
        ended.out().contains("3 tests: 3 passed") && ended.out().contains("@hello #3"),
        "{ended:?}"
    );
    let ended = runner(&dir, "@hello --repeat 2 -j 3 --until-fail").expect(0);
    assert!(ended.out().contains("ringfence: 2 tests, 2 at a time\n"), "{ended:?}");
    assert!(ended.out().contains("2 tests: 2 passed"), "{ended:?}");
    let ended = runner(&dir, "@exit-7 -j 1 --until-fail --tap t.tap").expect(1);
    assert!(ended.out().contains("1 test: 0 passed, 1 failed"), "{ended:?}");
    assert_eq!(tap(&fs::read_to_string(dir.join("t.tap")).unwrap()).0, Some(1));
}

/// So many tests that each take half a second and pass.
fn slow(count: usize) -> String {
    let test = |n| {
        format!(
            "[[test]]\nname = 'slow {n}'\nimage = '@spin'\ntimeout = '500ms'\nexpect = 'timeout'\nautopsy = 'off'\n"
        )
    };
    (0..count).map(test).collect()
}

#[test]
fn the_memory_budget_is_kept() {
    need_kvm();
    let dir = Dir::new();
    tests_in(&dir, &slow(4));
    let ended = runner(&dir, "-j 4 --memory 64M --memory-budget 100M").expect(0);
    assert!(ended.took >= Duration::from_secs(2), "two ran at once: {ended:?}");
}

/// Processes that run with this directory as their memory of durations.
fn processes(dir: &Dir) -> Vec<i32> {
    let mark = format!("XDG_CACHE_HOME={}", dir.path().display());
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|it| it.ok()?.file_name().to_str()?.parse().ok());
    let ours = |pid: &i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
    };
    pids.filter(ours).collect()
}

#[track_caller]
fn nobody_is_left(dir: &Dir) {
    assert!(wait_until(|| processes(dir).is_empty()), "left behind: {:?}", processes(dir));
}

fn partial_reports(dir: &Dir) -> usize {
    let report = fs::read_to_string(dir.join("j.xml")).unwrap();
    Report::deserialize_from_str(&report).unwrap_or_else(|e| panic!("{e}: {report}"));
    tap(&fs::read_to_string(dir.join("t.tap")).unwrap());
    tests_of(&json_lines(&fs::read(dir.join("l.jsonl")).unwrap())).len()
}

#[test]
fn killed_at_any_time_it_leaves_valid_reports_and_nobody_behind() {
    need_kvm();
    let dir = Dir::new();
    tests_in(&dir, &slow(40));
    for wait in [0, 150, 700, 1300] {
        for name in ["j.xml", "t.tap", "l.jsonl"] {
            let _ = fs::remove_file(dir.join(name));
        }
        let running = runner(&dir, "--junit j.xml --tap t.tap --json l.jsonl").start();
        let running = running.says("40 tests");
        // The reports are begun behind that line.
        assert!(wait_until(|| fs::metadata(dir.join("l.jsonl")).is_ok_and(|it| it.len() > 0)));
        thread::sleep(Duration::from_millis(wait));
        running.signal(libc::SIGKILL).end();
        assert!(partial_reports(&dir) < 40);
        let report = fs::read_to_string(dir.join("j.xml")).unwrap();
        assert!(report.contains("errors=\"1\"") && report.contains("did not come to its end"));
        nobody_is_left(&dir);
    }
}

#[test]
fn told_to_end_it_says_what_did_not_run() {
    need_kvm();
    let dir = Dir::new();
    tests_in(&dir, &slow(60));
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let running = runner(&dir, "--junit j.xml --tap t.tap --json l.jsonl").start();
        let ended = running.says("PASS").signal(signal).end().expect(128 + signal);
        assert!(ended.out().contains("not run"), "{ended:?}");
        nobody_is_left(&dir);
        assert_eq!(partial_reports(&dir), 60);
        let report = fs::read_to_string(dir.join("j.xml")).unwrap();
        assert!(!report.contains("did not come to its end"), "{report}");
        let lines = json_lines(&fs::read(dir.join("l.jsonl")).unwrap());
        assert_eq!(lines.last().unwrap()["signal"], signal);
    }
}

#[test]
fn a_worker_that_is_killed_takes_no_other_test_with_it() {
    need_kvm();
    let dir = Dir::new();
    tests_in(&dir, &slow(4));
    let running = runner(&dir, "-j 1 --nocapture").start().says("spin");
    let own = running.child.id() as i32;
    let worker = processes(&dir).into_iter().find(|pid| *pid != own).expect("a worker");
    kill(worker, libc::SIGKILL);
    let ended = running.end().expect(1);
    assert!(ended.out().contains("was ended by signal 9"), "{ended:?}");
    assert!(ended.out().contains("4 tests: 3 passed, 1 could not be run"), "{ended:?}");
}

#[test]
fn the_longest_come_first_once_they_are_known() {
    need_kvm();
    let dir = Dir::new();
    // On a slow machine even the quick one takes half a second.
    let slow = slow(1).replace("500ms", "5s");
    tests_in(&dir, &("[[test]]\nname = 'a quick one'\nimage = '@hello'\n".to_owned() + &slow));
    runner(&dir, "-j 1").expect(0);
    assert!(dir.join("ringfence/durations.json").exists());
    let said = runner(&dir, "-j 1").expect(0).out();
    assert!(said.find("slow 0") < said.find("a quick one"), "{said}");
}

#[test]
fn an_image_that_announces_its_tests_is_those_tests() {
    need_kvm();
    let dir = Dir::new();
    let names = runner(&dir, "@suite --list").expect(0).out();
    assert_eq!(names.lines().count(), 200, "{names}");
    assert!(names.lines().all(|name| name.starts_with("@suite::")), "{names}");
    let ended = runner(&dir, "@suite -q").expect(0);
    assert!(ended.out().contains("200 tests: 200 passed"), "{ended:?}");
    let ended = runner(&dir, "@suite -f *::lock_* --boot-each").expect(0);
    assert!(ended.out().contains("@suite::lock_add"), "{ended:?}");
}

#[test]
fn tests_that_break_their_machine_harm_no_other() {
    need_kvm();
    let dir = Dir::new();
    image(&dir, "bad.elf", "suite-bad");
    tests_in(&dir, "[[test]]\nimage = 'bad.elf'\nmemory = '16M'\ntimeout = '5s'\n");
    let run = || {
        runner(&dir, "--json l.jsonl").expect(1);
        let lines = json_lines(&fs::read(dir.join("l.jsonl")).unwrap());
        let outcome = |test: &&Value| (test["name"].to_string(), test["status"].to_string());
        tests_of(&lines).iter().map(outcome).collect::<BTreeSet<_>>()
    };
    let outcomes = run();
    assert_eq!(run(), outcomes, "the order, or another worker, made a difference");
    let count = |status: &str| outcomes.iter().filter(|(_, it)| it.contains(status)).count();
    assert!(count("passed") > 0 && count("died") > 0 && count("timed-out") > 0, "{outcomes:?}");
}

#[test]
fn unittests_cfg_as_it_is() {
    need_kvm();
    let dir = Dir::new();
    image(&dir, "mb.flat", "hello-multiboot");
    dir.file(
        "unittests.cfg",
        "# kvm-unit-tests\n[one]\nfile = mb.flat\nsmp = 2\ntest_args = 'two words'\nqemu_params = -cpu qemu64,-x2apic -m 64\n\
         [other-host]\nfile = mb.flat\narch = i386\n[device]\nfile = mb.flat\nqemu_params = -device edu\n\
         [manual]\nfile = mb.flat\ngroups = slow nodefault\n[checked]\nfile = mb.flat\ncheck = /nonexistent=Y\n\
         [missing]\nfile = none.flat\n[many]\nfile = mb.flat\nsmp = 5000\n\
         [small]\nfile = mb.flat\nqemu_params = -m 512k\n[late]\nfile = mb.flat\ntimeout = soon\n\
         [open]\nfile = mb.flat\ntest_args = 'a\n\
         [rude \x1b[2J]\nfile = mb.flat\nqemu_params = -cpu \x1b[2J\n",
    );
    let ended = runner(&dir, "--json l.jsonl").expect(0);
    assert!(ended.out().contains("2 passed, 9 skipped"), "{ended:?}");
    assert!(ended.out().contains("not understood: timeout \"soon\" is not a time"), "{ended:?}");
    assert!(ended.out().contains("no machine here is as it asks: bad value for cpus: 5000"));
    let report = fs::read_to_string(dir.join("l.jsonl")).unwrap();
    assert!(report.contains("\"seconds\":0.0") && !report.contains("-0.0"), "{report}");
    let lines = json_lines(report.as_bytes());
    let one = tests_of(&lines).into_iter().find(|test| test["name"] == "one").unwrap().clone();
    let said = one["attempts"][0]["serial"].as_str().unwrap();
    // The environment is a module whose head is NR_CPUS.
    for words in ["two words", "modules=1", "module0.head=4e525f43", "ram_mib=64"] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    let ended = runner(&dir, "-f tag:slow").expect(0);
    assert!(ended.out().contains("1 passed"), "{ended:?}");
    let noted = runner(&dir, "-v -f rude").expect(0);
    noted.one_line("rude \\u{1b}[2J: not followed: -cpu \\u{1b}[2J");
}

#[test]
fn a_directory_of_images() {
    need_kvm();
    let dir = Dir::new();
    fs::create_dir(dir.join("sub")).unwrap();
    image(&dir, "hello.elf", "hello-elf64");
    image(&dir, "sub/hello.elf", "hello-multiboot");
    dir.file("notes.txt", "no image");
    dir.file(".hidden.elf", ringfence::guests::find("hello-elf64").unwrap().image);
    assert_eq!(runner(&dir, ". --list").expect(0).out(), "hello\nsub/hello\n");
    runner(&dir, ".").expect(0);
    let same_stem = runner(&dir, "hello.elf sub/hello.elf --list").expect(0).out();
    assert_eq!(same_stem, "hello.elf\nsub/hello.elf\n");
    assert!(Path::new(&dir.join("sub")).is_dir());
}

/// The attempts' causes of a run that is to end with this code, by name.
fn causes(dir: &Dir, args: &str, code: i32) -> Vec<(String, String)> {
    runner(dir, &format!("{args} --json l.jsonl")).expect(code);
    let lines = json_lines(&fs::read(dir.join("l.jsonl")).unwrap());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    tests_of(&lines).iter().map(|test| (text(&test["name"]), text(&test["cause"]))).collect()
}

#[test]
fn no_test_that_an_image_announces_is_lost() {
    need_kvm();
    let dir = Dir::new();
    for (how, words) in [
        ("twins", "two tests by the name \"one\""),
        ("many", "more than 4096"),
        ("long", "longer than 255"),
        ("bytes", "not UTF-8"),
        ("silent", "announced no test"),
        ("early", "before it was ready"),
        ("off", "announced no test, and ended: success: powered off"),
        ("dies", "triple fault"),
    ] {
        // Nor by a choice among the tests, which nobody can make.
        for choice in ["", " -f net", " --shard 2/2"] {
            let causes = causes(&dir, &format!("@suite-liar --cmdline how={how}{choice}"), 1);
            assert_eq!(causes.len(), 1, "{how}{choice}: {causes:?}");
            assert!(causes[0].1.contains(words), "{how}{choice}: {causes:?}");
        }
        runner(&dir, &format!("@suite-liar --cmdline how={how} --list"))
            .expect(65)
            .one_line("cannot list the tests of @suite-liar");
    }
    assert_eq!(causes(&dir, "@suite-liar", 0).len(), 2);
    for (name, cause) in causes(&dir, "@suite-liar --cmdline how=late", 1) {
        assert!(cause.contains("behind READY"), "{name}: {cause}");
    }
    let lines = json_lines(&fs::read(dir.join("l.jsonl")).unwrap());
    for attempt in tests_of(&lines).iter().map(|test| &test["attempts"][0]) {
        assert_eq!((&attempt["verdict"], &attempt["exit_code"]), (&"bad-image".into(), &65.into()));
    }
}

/// Its run is the boot that was to list it: one that passes at the second try only is flaky.
#[test]
fn an_image_that_announces_nothing_is_one_test_and_runs_once() {
    need_kvm();
    let dir = Dir::new();
    let plain = "@suite-liar --cmdline how=plain";
    assert_eq!(causes(&dir, plain, 0).len(), 1);
    assert_eq!(causes(&dir, &format!("{plain} --repeat 3"), 0).len(), 3);
    runner(&dir, &format!("{plain} --nocapture")).expect(0).silent();
    runner(&dir, &format!("{plain} -f net")).expect(66);
    let shards = ["1/2", "2/2"].map(|it| causes(&dir, &format!("{plain} --shard {it}"), 0).len());
    assert_eq!(shards, [1, 0]);
    let test = |facts: &str| {
        tests_in(&dir, &format!("[[test]]\nimage = '@suite-liar'\nmemory = '16M'\n{facts}\n"));
        causes(&dir, "", i32::from(facts.contains("mailbox")))
    };
    let silent = test("cmdline = 'how=plain'\nmailbox = true");
    assert!(silent[0].1.contains("announced no test"), "{silent:?}");
    assert_eq!(test("cmdline = 'how=dies'\nexpect = 'triple-fault'").len(), 1);
}

#[test]
fn what_is_asked_for_has_to_be_there() {
    need_kvm();
    let dir = Dir::new();
    for args in [
        "@hello -f typo --shard 1/4",
        "@hello @exit-0 -f =@hello -f =@nope",
        "@hello -f @hello -f tag:none",
    ] {
        runner(&dir, args).expect(66);
    }
    fs::create_dir(dir.join("empty")).unwrap();
    runner(&dir, "@hello empty").expect(66).one_line("there is no test in empty");
}

#[test]
fn a_directory_leaves_nothing_out() {
    need_kvm();
    let dir = Dir::new();
    for below in ["d", "d/listed", "e"] {
        fs::create_dir(dir.join(below)).unwrap();
    }
    image(&dir, "d/hello.elf", "hello-elf64");
    image(&dir, "e/hello.elf", "hello-elf64");
    dir.file("d/nothing.elf", "");
    std::os::unix::fs::symlink("nowhere.elf", dir.join("d/gone.elf")).unwrap();
    // A relocatable object file is no image.
    dir.file("d/part.o", [&b"\x7FELF\x02\x01\x01"[..], &[0; 9], &[1, 0, 62, 0], &[0; 60]].concat());
    dir.file("d/listed/ringfence-tests.toml", "[[test]]\nname = 'x'\nimage = '@exit-7'\n");
    let mut names: Vec<_> = causes(&dir, "d e", 1).into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, ["d/hello", "e/hello", "gone", "listed/x", "nothing"]);
}

#[test]
fn a_directory_is_looked_into_through_links_and_once() {
    let dir = Dir::new();
    let mut deep = PathBuf::from("d");
    for _ in 0..20 {
        deep.push("below");
    }
    fs::create_dir_all(dir.path().join(&deep)).unwrap();
    fs::create_dir_all(dir.join("elsewhere")).unwrap();
    image(&dir, &format!("{}/deep.elf", deep.display()), "hello-elf64");
    image(&dir, "elsewhere/far.elf", "hello-elf64");
    for (to, from) in [("../elsewhere", "d/a-link"), ("..", "d/below/up"), ("below", "d/a-way")] {
        std::os::unix::fs::symlink(to, dir.join(from)).unwrap();
    }
    // A host's program, with an interpreter, is no guest.
    fs::copy("/bin/sh", dir.join("d/sh")).unwrap();
    let listed = runner(&dir, "--list d").expect(0).out();
    let names: Vec<_> = listed.lines().collect();
    let deep = deep.strip_prefix("d").unwrap().join("deep").display().to_string();
    assert_eq!(names, ["a-link/far", deep.as_str()]);
}

#[test]
fn a_report_overwrites_nothing_that_is_run() {
    need_kvm();
    let dir = Dir::new();
    fs::create_dir(dir.join("d")).unwrap();
    let image = image(&dir, "d/hello.elf", "hello-elf64");
    let list = dir.file("d/ringfence-tests.toml", "[[test]]\nimage = 'hello.elf'\n");
    let read = || [&image, &list].map(|path| fs::read(path).unwrap());
    let before = read();
    for report in ["--json d/ringfence-tests.toml", "--tap d/hello.elf", "--junit d/hello.elf"] {
        runner(&dir, &format!("d {report}")).expect(64).one_line("would overwrite it");
    }
    assert!(read() == before);
    runner(&dir, "@no-such-guest").expect(66).one_line("there is no guest @no-such-guest");
    tests_in(&dir, "[[test]]\nimage = '@hello'\ncore = 'c'\n");
    runner(&dir, "").expect(78).one_line("core: the runner writes none");
}

#[test]
fn a_run_without_the_coverage_that_was_asked_for_does_not_pass() {
    need_kvm();
    let dir = Dir::new();
    let ended = runner(&dir, "@hello --coverage c --json l.jsonl").expect(65);
    ended.one_line("no coverage: no image that ran has an LLVM profile");
    let lines = json_lines(&fs::read(dir.join("l.jsonl")).unwrap());
    assert_eq!(lines.last().unwrap()["exit_code"], 65);
}

#[test]
fn what_is_standard_output_by_another_name_gets_the_report_alone() {
    need_kvm();
    let dir = Dir::new();
    let path = dir.join("l.jsonl");
    for name in ["-", "/dev/stdout", "l.jsonl"] {
        let run = common::script(&format!("$R test @hello --json {name} >l.jsonl"));
        let cache = dir.path().to_owned();
        let run = run.in_dir(dir.path());
        run.with(move |command| _ = command.env("XDG_CACHE_HOME", cache)).expect(0);
        let lines = json_lines(&fs::read(&path).unwrap());
        assert_eq!((tests_of(&lines).len(), lines.len()), (1, 3), "{name}");
    }
}

#[test]
fn a_test_passes_by_its_verdict_and_is_skipped_for_a_reason() {
    need_kvm();
    let dir = Dir::new();
    for (name, cause) in causes(&dir, "@suite-liar --cmdline how=quits", 1) {
        assert!(cause.contains("without a verdict (debug exit)"), "{name}: {cause}");
    }
    image(&dir, "bad.elf", "suite-bad");
    let skipped = causes(&dir, "bad.elf -f *is_skipped", 66);
    assert_eq!(skipped[0].1, "this machine is as good as any");
    let fault = causes(&dir, "@suite-liar --cmdline how=colours", 1);
    assert!(fault[0].1.contains("control character"), "{fault:?}");
}

#[test]
fn a_boot_that_announces_other_tests_runs_none_of_them() {
    need_kvm();
    let dir = Dir::new();
    for (name, cause) in causes(&dir, "@suite-liar --cmdline how=moody --boot-each --repeat 2", 1) {
        assert!(cause.contains("has not announced"), "{name}: {cause}");
    }
    for (name, cause) in causes(&dir, "@suite-liar --cmdline how=more --boot-each", 1) {
        let known = name.ends_with("::one") || name.ends_with("::two");
        let words = if known { "other tests than the one before" } else { "has not announced" };
        assert!(cause.contains(words), "{name}: {cause}");
    }
}

#[test]
fn a_worker_that_is_killed_while_it_lists_is_no_passed_test() {
    need_kvm();
    let dir = Dir::new();
    for (retries, code) in [("0", 1), ("1", 0)] {
        let running = runner(&dir, &format!("--retries {retries} --junit j.xml")).open_input();
        image(&dir, "liar.elf", "suite-liar");
        tests_in(&dir, "[[test]]\nimage = 'liar.elf'\nmemory = '16M'\ncmdline = 'how=hangs'\n");
        let running = running.start();
        let own = running.child.id() as i32;
        let worker = || processes(&dir).into_iter().find(|pid| *pid != own);
        assert!(wait_until(|| worker().is_some_and(has_machine)), "no worker with a machine");
        // The next boot goes well.
        fs::rename(image(&dir, "other", "suite"), dir.join("liar.elf")).unwrap();
        kill(worker().unwrap(), libc::SIGKILL);
        let ended = running.end().expect(code);
        let words = match code {
            0 => "201 passed (1 flaky)",
            _ => "1 test: 0 passed, 1 could not be run",
        };
        assert!(ended.out().contains(words), "{ended:?}");
    }
}

/// Has a process made a VM with a processor?
fn has_machine(pid: i32) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let target = |file: fs::DirEntry| fs::read_link(file.path()).unwrap_or_default();
    files.into_iter().any(|file| target(file).to_string_lossy().contains("kvm-vcpu"))
}

#[test]
fn ended_while_it_lists_it_writes_its_reports_and_none_of_yesterday_stays() {
    need_kvm();
    let dir = Dir::new();
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        runner(&dir, "@hello --junit j.xml --tap t.tap --json l.jsonl").expect(0);
        let args =
            "@suite-liar @hello --cmdline how=hangs --junit j.xml --tap t.tap --json l.jsonl";
        let running = runner(&dir, args).start();
        let own = running.child.id() as i32;
        let worker = || processes(&dir).into_iter().find(|pid| *pid != own);
        assert!(wait_until(|| worker().is_some_and(has_machine)), "no worker with a machine");
        let ended = running.signal(signal).end();
        nobody_is_left(&dir);
        let reported = partial_reports(&dir);
        let text = fs::read_to_string(dir.join("j.xml")).unwrap();
        if signal == libc::SIGTERM {
            assert_eq!((ended.code(), reported), (128 + signal, 2), "{ended:?}");
            assert!(text.contains("ended by signal 15"), "{text}");
        }
        assert!(!text.contains("testcase name=\"@hello\" classname=\"images\" time=\"0.0\""));
        assert!(reported != 1, "yesterday's report: {text}");
    }
}

/// What a filter asks for may be in an image that nobody came to ask.
#[test]
fn ended_while_it_lists_it_says_so_whatever_was_asked_for() {
    need_kvm();
    let dir = Dir::new();
    let args = "@suite-liar @suite --cmdline how=hangs -j 1 -f =@suite::lock_add --json l.jsonl";
    let running = runner(&dir, args).start();
    let own = running.child.id() as i32;
    let worker = || processes(&dir).into_iter().find(|pid| *pid != own);
    assert!(wait_until(|| worker().is_some_and(has_machine)), "no worker with a machine");
    let ended = running.signal(libc::SIGTERM).end().expect(128 + libc::SIGTERM);
    assert!(ended.out().contains("1 test: 0 passed, 1 not run"), "{ended:?}");
    let lines = json_lines(&fs::read(dir.join("l.jsonl")).unwrap());
    assert_eq!(tests_of(&lines)[0]["name"], "@suite");
}

#[test]
fn an_image_that_hangs_in_boot_costs_its_limit_once() {
    need_kvm();
    let dir = Dir::new();
    let ended = runner(&dir, "@suite-liar --cmdline how=hangs --timeout 5s").expect(1);
    assert!(ended.took < Duration::from_secs(10), "{ended:?}");
    assert!(ended.out().contains("TIMEOUT") && ended.out().contains("autopsy"), "{ended:?}");
    // The budget counts while tests are found out, too.
    let test = |n| {
        format!(
            "[[test]]\nname = '{n}'\nimage = '@suite-liar'\ncmdline = 'how=hangs'\ntimeout = '500ms'\nexpect = 'timeout'\nautopsy = 'off'\n"
        )
    };
    tests_in(&dir, &(0..4).map(test).collect::<String>());
    let ended = runner(&dir, "-j 4 --memory 64M --memory-budget 100M").expect(0);
    assert!(ended.took >= Duration::from_secs(2), "two ran at once: {ended:?}");
}

#[test]
fn a_test_that_starts_its_machine_again_harms_no_other() {
    need_kvm();
    let dir = Dir::new();
    tests_in(
        &dir,
        "[[test]]\nname = 'x'\nimage = '@suite-liar'\ncmdline = 'how=restart'\non-reset = 'restart'\nmemory = '16M'\ntimeout = '5s'\n",
    );
    let causes = causes(&dir, "-j 1", 1);
    assert!(causes[0].1.contains("timed out"), "{causes:?}");
    assert_eq!(causes[1], ("x::two".to_owned(), "success: debug exit 0".to_owned()));
}

#[test]
fn what_no_format_takes_is_shown_in_each() {
    need_kvm();
    let dir = Dir::new();
    let args = "@suite-liar --cmdline how=rude --junit j.xml --tap t.tap --json l.jsonl --github";
    let ended = runner(&dir, args).expect(1);
    assert_eq!(partial_reports(&dir), 2);
    let report = fs::read_to_string(dir.join("j.xml")).unwrap();
    assert!(report.contains("\\u{ffff}") && !report.contains('\u{FFFF}'), "{report}");
    let tap = fs::read_to_string(dir.join("t.tap")).unwrap();
    assert!(tap.contains("\\u{ffff}") && tap.contains("\\u2028"), "{tap}");
    // Between the words that stop the workflow's commands and those that let them go on.
    let live = runner(&dir, "@suite-liar --cmdline how=rude --github --nocapture").expect(1);
    assert!(live.out().contains("::error::before it is ready"), "{live:?}");
    for said in [ended.out(), live.out()] {
        says_nothing_to_github(&said);
    }
}

#[test]
fn a_run_that_comes_to_nothing_ends_its_reports() {
    need_kvm();
    let dir = Dir::new();
    dir.file("file", "");
    for (args, code, words) in
        [("-f nothing", 66, "none of the 1 tests"), ("--coverage file", 71, "cannot begin in file")]
    {
        let ended = runner(&dir, &format!("@hello --github --tap t.tap {args}")).expect(code);
        says_nothing_to_github(&ended.out());
        let text = fs::read_to_string(dir.join("t.tap")).unwrap();
        assert_eq!(tap(&text), (None, Vec::new()));
        assert!(text.contains(&format!("Bail out! {words}")), "{text}");
        ended.one_line(words);
    }
}

#[track_caller]
fn says_nothing_to_github(said: &str) {
    let token = said.lines().find_map(|line| line.strip_prefix("::stop-commands::")).unwrap();
    assert!(token.len() >= 16, "{said}");
    let mut stopped = false;
    for line in said.lines().filter(|line| line.starts_with("::")) {
        match line {
            _ if line == format!("::stop-commands::{token}") => stopped = true,
            _ if line == format!("::{token}::") => stopped = false,
            _ => assert_eq!(stopped, !line.contains("title="), "{line}"),
        }
    }
    assert!(!stopped, "{said}");
}

#[test]
fn odd_files_in_a_directory() {
    need_kvm();
    let dir = Dir::new();
    image(&dir, "hello.elf", "hello-elf64");
    let fifo = std::ffi::CString::new(dir.join("fifo").to_str().unwrap()).unwrap();
    // SAFETY: the path is a string.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    assert_eq!(runner(&dir, ". --list").expect(0).out(), "hello\n");
    image(&dir, "hello.bin", "hello-multiboot");
    assert_eq!(runner(&dir, ". --list").expect(0).out(), "hello.bin\nhello.elf\n");
    std::os::unix::fs::symlink("/nonexistent", dir.join("ringfence-tests.toml")).unwrap();
    runner(&dir, ".").expect(66).one_line("ringfence-tests.toml");
}

#[test]
fn an_image_that_cannot_be_read_is_a_test_that_cannot_be_run() {
    need_kvm();
    let dir = Dir::new();
    image(&dir, "hello.elf", "hello-elf64");
    let secret = image(&dir, "secret.elf", "hello-elf64");
    let name = std::ffi::OsString::from_vec(b"odd\xFF.elf".to_vec());
    fs::copy(dir.join("hello.elf"), dir.path().join(name)).unwrap();
    let ended = runner(&dir, ".").expect(1);
    assert!(ended.out().contains("3 tests: 2 passed, 1 could not be run"), "{ended:?}");
    assert!(ended.out().contains("odd\\xff") && ended.out().contains("UTF-8"), "{ended:?}");
    if common::is_root() {
        // Root reads everything but what is no longer there: what the kernel refuses to anybody.
        fs::remove_file(&secret).unwrap();
        std::os::unix::fs::symlink("/proc/self/mem", &secret).unwrap();
    } else {
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    }
    let ended = runner(&dir, ".").expect(1);
    assert!(ended.out().contains("3 tests: 1 passed, 2 could not be run"), "{ended:?}");
    let of_two = runner(&dir, "hello.elf secret.elf").expect(1);
    assert!(of_two.out().contains("1 passed, 1 could not be run"), "{of_two:?}");
}

#[test]
fn a_limit_beyond_all_clocks() {
    need_kvm();
    let dir = Dir::new();
    runner(&dir, "@hello @suite-liar --timeout 18446744073709551615s").expect(0);
}

#[test]
fn devices_that_a_test_needs() {
    need_kvm();
    let dir = Dir::new();
    tests_in(&dir, "[[test]]\nimage = '@timer'\ndevices = ['com1', 'irqchip=full']\n");
    runner(&dir, "").expect(0);
    tests_in(&dir, "[[test]]\nimage = '@timer'\nirqchip = 'none'\ndevices = ['irqchip=full']\n");
    runner(&dir, "").expect(78).one_line("says otherwise");
}

#[test]
fn a_million_rounds_take_no_memory() {
    need_kvm();
    let dir = Dir::new();
    let run = runner(&dir, "@suite --repeat 1000000 -q").with(|command| {
        let small = || {
            let limit = libc::rlimit { rlim_cur: 8 << 30, rlim_max: 8 << 30 };
            // SAFETY: the call reads the limit alone.
            let set = unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) };
            if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: setrlimit(2) is a plain system call.
        unsafe { std::os::unix::process::CommandExt::pre_exec(command, small) };
    });
    let running = run.start().says("200000000 tests");
    let ended = running.signal(libc::SIGTERM).end().expect(128 + libc::SIGTERM);
    assert!(ended.out().contains("not run"), "{ended:?}");
}

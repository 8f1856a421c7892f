//! Servers with few privileges, and addresses of the kernel, which no profile has.

use std::time::Duration;

use koltso_testkit::client::request_bytes;
use koltso_testkit::skip::{self, Remedy, skip};
use koltso_testkit::{Client, Launch, Server, eventually};

use crate::{Load, ask};

/// A server that runs as nobody, with these capabilities alone; `None`, recorded as skipped, where
/// that cannot be had.
fn as_nobody(capabilities: &str, folder: &std::path::Path) -> Option<Server> {
    use std::os::unix::fs::{PermissionsExt, chown};
    skip::tool("setpriv", "util-linux")?;
    if let Err(error) = chown(folder, Some(65534), Some(65534)) {
        skip(format!("a file cannot be given to nobody: {error}"), Remedy::Root);
        return None;
    }
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    // The build's own folder may be root's alone.
    let copy = folder.join("koltso");
    std::fs::copy(env!("CARGO_BIN_EXE_koltso"), &copy).unwrap();
    let privileges = format!("--inh-caps=-all{capabilities} --ambient-caps=-all{capabilities}");
    let command =
        format!("exec setpriv --reuid=65534 --regid=65534 --clear-groups {privileges} {} \"$@\"", copy.display());
    Some(Launch::on(&folder.join("data")).within(&["sh", "-c", &command]).flags("--threads 1").start())
}

/// A CPU profile that shows this. On a machine that is busy with other things the server may have too
/// little CPU within two seconds for a single sample.
fn profiled(server: &Server, format: &str, shows: impl Fn(&str) -> bool) -> String {
    let mut profile = String::new();
    eventually("a profile shows what runs", Duration::from_secs(60), || {
        profile = ask(server, &format!("profile?seconds=2&hz=99&format={format}")).expect(200, "cpu").text();
        shows(&profile) || {
            println!("{profile}");
            false
        }
    });
    profile
}

#[test]
fn without_privilege_cpu_is_seen_by_signals_and_off_cpu_says_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = as_nobody("", folder.path()) else { return };
    let _load = Load::on(&server);
    let page = ask(&server, "").expect(200, "index").text();
    let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap();
    if paranoid.trim().parse::<i32>().unwrap() <= 0 {
        let remedy = Remedy::Machine("a kernel with perf_event_paranoid of 1 or more");
        return skip(format!("perf_event_paranoid is {paranoid}"), remedy);
    }
    assert!(page.contains("signals") && page.contains("CAP_PERFMON"), "{page}");
    let text = profiled(&server, "text", |text| text.contains("koltso-core-0"));
    assert!(text.contains("signals"), "{text}");
    // A third by force makes room for itself.
    let mut two: Vec<Client> = (0..2).map(|_| server.connect().patience(Duration::from_secs(30))).collect();
    for client in &mut two {
        client.send(&request_bytes("GET", "/debug/pprof/profile?seconds=20", &[], None)).unwrap();
    }
    eventually("two run", Duration::from_secs(5), || ask(&server, "profile?seconds=1").status == 409);
    for _ in 0..2 {
        ask(&server, "profile?seconds=1&force=true").expect(200, "by force");
    }
    drop(two);
    let refused = ask(&server, "offcpu?seconds=1").expect(501, "off-CPU");
    assert!(refused.text().contains("CAP_PERFMON") && refused.header("x-go-pprof") == Some("1"), "{}", refused.text());
    for target in ["allocs", "heap", "mutex", "block", "stalls", "heatmap?seconds=1", "heatmap?event=allocs&seconds=1"]
    {
        ask(&server, target).expect(200, target);
    }
}

#[test]
fn with_cap_perfmon_alone_the_kernel_is_seen_too() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = as_nobody(",+perfmon", folder.path()) else { return };
    let _load = Load::on(&server);
    profiled(&server, "folded", |folded| folded.contains("koltso-core-0") && folded.contains("_[k]"));
    let page = ask(&server, "").expect(200, "index").text();
    assert!(page.contains("perf events"), "{page}");
    ask(&server, "offcpu?seconds=1").expect(200, "off-CPU");
    // Two at once share what memory may be locked.
    let mut second = server.connect().patience(Duration::from_secs(30));
    second.send(&request_bytes("GET", "/debug/pprof/profile?seconds=2", &[], None)).unwrap();
    ask(&server, "profile?seconds=1").expect(200, "beside another");
    second.read("GET").expect(200, "the other");
}

#[test]
fn kernel_functions_have_names_and_never_addresses() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    // As whoever runs the tests, and as nobody who may sample and see the kernel's names.
    let servers = [
        Some(Launch::on(&folders[0].path().join("data")).flags("--threads 1").start()),
        as_nobody(",+perfmon,+syslog", folders[1].path()),
    ];
    for server in servers.into_iter().flatten() {
        let _load = Load::on(&server);
        if !ask(&server, "").text().contains("perf events on every processor") {
            return skip("the kernel is not sampled", Remedy::Machine("perf events: CAP_PERFMON"));
        }
        // On a busy machine there may be few samples of a second. Names can be had where the kernel
        // gives them.
        let is_told = std::fs::read_to_string("/proc/sys/kernel/kptr_restrict").unwrap().trim() == "0";
        let wanted = if is_told { "tcp_sendmsg_[k]" } else { "_[k]" };
        let (mut id, mut proto) = (String::new(), Vec::new());
        let again =
            |id: &str, format: &str| ask(&server, &format!("captures?id={id}&format={format}")).expect(200, format);
        eventually("the kernel is sampled", Duration::from_secs(60), || {
            let capture = ask(&server, "profile?seconds=1&hz=499").expect(200, "cpu");
            (id, proto) = (capture.header("x-koltso-capture").unwrap().to_owned(), capture.body);
            again(&id, "folded").text().contains(wanted)
        });
        for format in ["folded", "perfscript", "html", "heatmap", "svg", "text"] {
            let text = again(&id, format).text();
            // The numbers in a page are letters, too.
            let is_page = matches!(format, "html" | "heatmap");
            assert!(!text.contains("0xffff") && (is_page || !text.contains("ffffffff")), "{format}: {text}");
        }
        // In the one binary form a varint of ten bytes is a number from 2^63 on.
        let inflated = inflate(&proto);
        let is_address = |bytes: &[u8]| bytes[..9].iter().all(|byte| byte & 0x80 != 0) && bytes[9] == 1;
        assert!(inflated.len() > 1000 && !inflated.windows(10).any(is_address), "an address of the kernel");
        // Nor does the server help to find out.
        let named = ask(&server, "symbol?0xffffffff81000000+0xffffffff80000000").expect(200, "symbol").text();
        assert!(named.lines().skip(1).all(|line| line.ends_with('\t')), "{named}");
    }
}

/// What `gzip -d` makes of the bytes.
fn inflate(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut gzip = Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, bytes) = (gzip.stdin.take().unwrap(), bytes.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let output = gzip.wait_with_output().unwrap();
    writer.join().unwrap();
    output.stdout
}

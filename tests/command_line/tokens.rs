//! The token of the control plane, SPEC.md section 6: a token that is configured is always needed.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use koltso_testkit::client::Framing;
use koltso_testkit::skip;
use koltso_testkit::{Client, Launch, Response, Server, entity};

use crate::{any_listen, assert_refused, serve};

const TOKEN: &str = "correct:horse+battery/staple=";
/// The token as the password of `Basic`, with the user names `anybody` and none.
const BASIC: [&str; 2] =
    ["Basic YW55Ym9keTpjb3JyZWN0OmhvcnNlK2JhdHRlcnkvc3RhcGxlPQ==", "Basic OmNvcnJlY3Q6aG9yc2UrYmF0dGVyeS9zdGFwbGU9"];

fn token_file(folder: &Path, token: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let file = folder.join("token");
    std::fs::write(&file, token).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    file.to_str().unwrap().to_owned()
}

fn with_token(folder: &Path, more: &str) -> Server {
    let flags = format!("--threads 1 --admin-token-file {} {more}", token_file(folder, &format!("{TOKEN}\n")));
    Launch::on(&folder.join("data")).flags(&flags).start()
}

fn ask(address: SocketAddr, method: &str, target: &str, lines: &[&str]) -> Response {
    let headers: Vec<(&str, &str)> = lines.iter().map(|line| ("Authorization", *line)).collect();
    Client::connect(address).unwrap().request(method, target, &headers, None)
}

const GUARDED: [&str; 6] =
    ["/status", "/metrics", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline", "/debug/pprof/symbol?0x1"];

#[test]
fn a_configured_token_is_needed_on_loopback_and_at_the_own_listener_too() {
    let folder = tempfile::tempdir().unwrap();
    let admin = any_listen();
    let server = with_token(folder.path(), &format!("--admin-listen {admin}"));
    let bearer = format!("Bearer {TOKEN}");
    for address in [server.address(), admin.parse().unwrap()] {
        for target in GUARDED {
            for line in [&*bearer, BASIC[0], BASIC[1], &bearer.replace("Bearer", "bearer")] {
                ask(address, "GET", target, &[line]).expect(200, &format!("{target} with {line}"));
            }
            let missing = ask(address, "GET", target, &[]).expect(401, target);
            // RFC 9110 section 11.6.1: a line each, since not all browsers can read two in one.
            let challenges: Vec<&str> = missing
                .headers
                .iter()
                .filter(|(name, _)| name.eq_ignore_ascii_case("www-authenticate"))
                .map(|(_, value)| &**value)
                .collect();
            assert_eq!(
                challenges,
                ["Basic realm=\"Koltso\", charset=\"UTF-8\"", "Bearer realm=\"Koltso\""],
                "{target}"
            );
            assert_eq!(missing.text().lines().count(), 1, "{target}: {:?}", missing.text());
            if target.starts_with("/debug") {
                assert_eq!(missing.header("x-go-pprof"), Some("1"), "or go tool pprof does not print why");
            }
            for wrong in ["Bearer wrong", "Basic d3Jvbmc6d3Jvbmc=", "Basic ?", "Bearer", TOKEN, "Digest x"] {
                let refused = ask(address, "GET", target, &[wrong]).expect(401, &format!("{target} with {wrong}"));
                assert!(refused.header("www-authenticate").is_some());
                assert!(!refused.text().contains("wrong") && !refused.text().contains(TOKEN), "{:?}", refused.text());
            }
            ask(address, "GET", target, &[&bearer, &bearer]).expect(400, "two lines");
            ask(address, "GET", target, &["Bearer wrong", &bearer]).expect(400, "two lines");
            ask(address, "POST", target, &[]).expect(401, "whatever the method");
            // Nothing to see: a preflight has no credentials.
            ask(address, "OPTIONS", target, &[]).expect(204, target);
        }
        let head = ask(address, "HEAD", "/status", &[]).expect(401, "HEAD");
        assert!(
            head.body.is_empty() && head.header("www-authenticate").is_some() && head.framing != Framing::UntilClose
        );
        assert!(ask(address, "HEAD", "/status", &[&bearer]).expect(200, "HEAD").body.is_empty());
        for target in ["/status?token=TOKEN", "/status?access_token=TOKEN", "/debug/pprof/?authorization=TOKEN"] {
            ask(address, "GET", &target.replace("TOKEN", "correct:horse%2Bbattery/staple%3D"), &[])
                .expect(401, "in the URL");
        }
    }
    for target in ["/health", "/"] {
        server.ask("GET", target).expect(200, target);
    }
    server.connect().store("key", "value");
    server.ask("GET", &entity("key")).expect(200, "the API");
}

#[test]
fn a_token_that_can_be_guessed_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for (token, is_enough) in [
        ("", false),
        ("open-sesame", false),
        ("fifteen-of-them", false),
        ("a few words are no token", false),
        ("sixteen-of-them!", true),
    ] {
        let file = token_file(folder.path(), &format!("{token}\n"));
        let listen = any_listen();
        if is_enough {
            let flags = format!("--admin-token-file {file}");
            drop(Launch::on(&data).flags(&flags).start());
            continue;
        }
        let said = assert_refused(token, &serve(&listen, &data, &["--admin-token-file", &file]), folder.path());
        assert!(said.contains(&file) && (token.is_empty() || !said.contains(token)), "{said}");
        if !token.is_empty() && !token.contains(' ') {
            assert!(said.contains("16"), "{said}");
        }
    }
}

#[test]
fn the_token_is_in_no_log_and_no_page() {
    let folder = tempfile::tempdir().unwrap();
    let server = with_token(folder.path(), "--log-level trace");
    let bearer = format!("Bearer {TOKEN}");
    for target in ["/", "/status", "/metrics", "/debug/pprof/", "/debug/pprof/cmdline"] {
        let text = ask(server.address(), "GET", target, &[&bearer]).expect(200, target).text();
        assert!(!text.contains(TOKEN), "{target}: {text}");
    }
    ask(server.address(), "GET", "/status", &["Bearer who-is-this-stranger"]).expect(401, "a wrong one");
    assert!(!server.log().contains(TOKEN) && !server.log().contains("stranger"), "{}", server.log());
}

/// What a browser shows at a URL.
fn shown(folder: &Path, url: &str) -> Option<String> {
    let browser = skip::tool("chromium", "chromium")?;
    let profile = format!("--user-data-dir={}", folder.join("browser").display());
    let output = Command::new("timeout")
        .args(["-k", "5", "90"])
        .arg(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--dump-dom", &profile, url])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_browser_can_log_in() {
    let folder = tempfile::tempdir().unwrap();
    let server = with_token(folder.path(), "");
    let address = server.address();
    // The browser sends what is in the URL once it has understood the challenge.
    let Some(page) = shown(folder.path(), &format!("http://me:correct%3Ahorse%2Bbattery%2Fstaple%3D@{address}/status"))
    else {
        return;
    };
    assert!(page.contains("\"state\": \"serving\""), "{page}");
    let refused = shown(folder.path(), &format!("http://me:wrong@{address}/status")).unwrap();
    assert!(!refused.contains("serving"), "{refused}");
}

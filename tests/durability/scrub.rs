//! The scrub of a node: it can be paused and hurried, and finds what nobody reads.

use std::time::Duration;

use koltso_testkit::wait::eventually;
use koltso_testkit::{Server, files};

#[test]
fn the_scrub_is_paused_and_told_to_read_everything_at_once() {
    let mut server = Server::fresh("");
    let mut client = server.connect();
    for number in 0..200 {
        client.put(format!("key-{number}"), format!("value-of-{number:05}")).expect(201, "PUT");
    }
    server.terminate();
    let (log, at) = files::find_in_logs(server.data(), b"value-of-00123").remove(0);
    files::flip(&log, at, 1);
    server.start_again();
    let scrub = |server: &Server| {
        let status: serde_json::Value = serde_json::from_str(&server.status()).unwrap();
        status["storage"]["scrub"].clone()
    };
    assert_eq!((&scrub(&server)["state"], &scrub(&server)["last_ended_ms"]), (&"running".into(), &0.into()));
    server.ask("POST", "/debug/scrub?state=paused").expect(204, "POST");
    assert_eq!(scrub(&server)["state"], "paused");
    server.ask("POST", "/debug/scrub?state=running").expect(204, "POST");
    assert_eq!(scrub(&server)["state"], "running");
    assert_eq!(server.storage_figure("damaged_records"), 0);
    server.ask("POST", "/debug/scrub?state=now").expect(204, "POST");
    eventually("everything is read", Duration::from_secs(20), || scrub(&server)["last_ended_ms"] != 0);
    assert_eq!((&scrub(&server)["state"], server.storage_figure("damaged_records")), (&"running".into(), 1));
    for wrong in ["", "?state=", "?state=off", "?now", "?state=now&state=now"] {
        server.ask("POST", &format!("/debug/scrub{wrong}")).expect(400, wrong);
    }
    let got = server.ask("GET", "/debug/scrub?state=now");
    assert_eq!((got.status, got.header("allow")), (405, Some("POST")));
}

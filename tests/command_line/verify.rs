//! `koltso verify`: exit code 0 of a whole folder, 1 of a damaged one, 2 where there is nothing to
//! verify; and nothing on disk is touched.

use koltso_testkit::{Server, files};

use crate::{assert_refused, assert_success, run};

#[test]
fn a_folder_is_whole_or_its_damage_is_listed() {
    let mut server = Server::fresh("");
    let mut client = server.connect();
    for number in 0..300 {
        client.put(format!("key-{number}"), format!("value-of-{number:05}")).expect(201, "PUT");
    }
    let data = server.data().to_path_buf();
    let folder = data.to_str().unwrap();
    // What it appended would otherwise reach the files in between.
    server.pause();
    let sentence = assert_refused("a folder in use", &["verify", folder], &data);
    assert!(sentence.contains("is in use by another process"), "{sentence}");
    server.kill();
    let before = files::listing(&data);
    for args in [&["verify", folder][..], &["verify", folder, "--json"]] {
        let output = run(args);
        assert_success(&output, "a folder after a kill");
        let text = String::from_utf8(output.stdout).unwrap();
        let says = if args.len() == 3 { "\"whole\":true" } else { ": whole; 300 records in " };
        assert!(text.contains(says), "{text}");
    }
    server.start_again();
    server.terminate();
    let output = run(&["verify", folder]);
    assert_success(&output, "a folder after a clean stop");
    assert_ne!(files::listing(&data), before, "it was started meanwhile");

    std::fs::write(data.join("standing"), "koltso-standing 1\nstanding whole 0\n").unwrap();
    let before = files::listing(&data);
    let (log, at) = files::find_in_logs(&data, b"value-of-00123").remove(0);
    files::flip(&log, at, 1);
    std::fs::write(data.join("identity"), "something").unwrap();
    let output = run(&["verify", folder]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("the value of a record is damaged") && text.contains("identity: it is damaged"), "{text}");
    assert!(text.contains("standing: it is damaged"), "{text}");
    assert!(text.contains(": damaged in 3 places; 299 records in "), "{text}");
    let output = run(&["verify", folder, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&found["whole"], &found["flaw_count"]), (&false.into(), &3.into()), "{found}");
    let name = log.file_name().unwrap().to_str().unwrap();
    assert!(found["flaws"].as_array().unwrap().iter().any(|flaw| flaw["file"] == name), "{found}");
    let names = |listing: &[(std::path::PathBuf, u64, std::time::SystemTime)]| {
        listing.iter().map(|(path, ..)| path.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&files::listing(&data)), names(&before), "nothing was added");
}

#[test]
fn what_cannot_be_verified_is_said_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let sentence = assert_refused("no folder", &["verify", missing.to_str().unwrap()], dir.path());
    assert!(sentence.contains("missing"), "{sentence}");
    let sentence = assert_refused("an empty folder", &["verify", dir.path().to_str().unwrap()], dir.path());
    assert!(sentence.contains("holds no koltso data"), "{sentence}");
}

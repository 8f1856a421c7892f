//! The configuration file.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::{BINARY, any_listen, assert_refused, serve};
use koltso_testkit::server::free_port;
use koltso_testkit::{Client, Launch, eventually};

#[test]
fn the_config_file_has_the_names_of_the_flags_and_flags_win() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("koltso.toml");
    let largest = |flags: &str| {
        let data = folder.path().join(format!("data-{}", free_port()));
        let server = Launch::on(&data).flags(&format!("--config {} {flags}", config.display())).start();
        let mut sizes =
            [1000, 1500, 2500].into_iter().filter(|&size| server.connect().put("key", vec![b'v'; size]).status == 201);
        sizes.next_back()
    };
    for name in ["max-value", "max_value"] {
        std::fs::write(&config, format!("{name} = \"1KiB\"\n")).unwrap();
        assert_eq!(largest(""), Some(1000), "{name} in the file");
        assert_eq!(largest("--max-value 2000"), Some(1500), "a flag wins over {name} in the file");
    }
    std::fs::write(&config, "# nothing but a comment\n").unwrap();
    assert_eq!(largest(""), Some(2500), "an empty file");
    std::fs::write(
        &config,
        "max-connections = 100\nsync = \"always\"\nrequest_timeout = \"5s\"\nthreads = 1\nmax-in-flight = 100\n",
    )
    .unwrap();
    assert_eq!(largest(""), Some(2500), "a file with several settings");
}

#[test]
fn listen_and_data_may_come_from_the_config_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("koltso.toml");
    let (listen, data) = (any_listen(), folder.path().join("from-config"));
    std::fs::write(&config, format!("listen = \"{listen}\"\ndata = {:?}\n", data.to_str().unwrap())).unwrap();
    let mut child = Command::new(BINARY)
        .args(["serve", "--config", config.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let address: SocketAddr = listen.parse().unwrap();
    let outcome = std::panic::catch_unwind(|| {
        eventually("the server listens where the file says", Duration::from_secs(20), || {
            Client::connect(address).is_ok_and(|mut client| client.put("key", "value").status == 201)
        });
        assert!(data.join("FORMAT").exists(), "the data is not where the file says");
    });
    child.kill().unwrap();
    child.wait().unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_wrong_config_file_is_one_sentence_and_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let (config, data, listen) = (folder.path().join("koltso.toml"), folder.path().join("data"), any_listen());
    let cases = [
        ("max-walue = \"1MiB\"\n", "max-walue"),
        ("[storage]\nsegments = 3\n", "storage"),
        ("max-value = \"1MiB\n", ""),
        ("max-value = \"lots\"\n", "lots"),
        ("max-connections = \"many\"\n", ""),
        ("threads = -1\n", ""),
        ("sync = 3\n", ""),
        ("= 3\n", ""),
        ("max-value = \"1MiB\"\nmax-value = \"2MiB\"\n", ""),
    ];
    for (text, named) in cases {
        std::fs::write(&config, text).unwrap();
        let args = serve(&listen, &data, &["--config", config.to_str().unwrap()]);
        let sentence = assert_refused(text, &args, folder.path());
        assert!(sentence.contains(named), "{text:?}: {sentence}");
        assert!(!data.exists(), "{text:?}: the folder was made");
    }
    assert_refused(
        "a folder as config",
        &serve(&listen, &data, &["--config", folder.path().to_str().unwrap()]),
        folder.path(),
    );
}

//! Where io_uring is refused, as in a default container, the server says so once and serves over epoll.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::server::{free_port, json_string};
use common::{Client, eventually};

/// Makes `io_uring_setup` fail with EPERM from now on, in this process and its children: what Docker's profile does.
#[allow(unsafe_code)]
fn refuse_io_uring() -> std::io::Result<()> {
    const LOAD_NUMBER: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let filter = [
        libc::sock_filter { code: LOAD_NUMBER, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: libc::SYS_io_uring_setup as u32 },
        libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | libc::EPERM as u32 },
        libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: system calls with pointers to the filter above, which the kernel copies.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn serve_over_epoll(sync: &str) {
    let data = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(env!("CARGO_BIN_EXE_koltso"));
    command.args(["serve", "--listen", &address, "--sync", sync, "--data"]).arg(data.path());
    command.stderr(Stdio::piped());
    #[allow(unsafe_code)]
    // SAFETY: between fork and exec, only system calls are made and nothing is allocated.
    unsafe {
        command.pre_exec(refuse_io_uring);
    }
    let mut server = command.spawn().unwrap();
    let address = address.parse().unwrap();
    eventually("the server is healthy", Duration::from_secs(20), || {
        Client::connect(address).is_ok_and(|mut client| {
            client.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").is_ok()
                && client.try_read("GET").is_ok_and(|answer| answer.is_some_and(|answer| answer.status == 200))
        })
    });
    let mut client = Client::connect(address).unwrap();
    let large = vec![b'x'; 3 << 20];
    client.put("small", "value").expect(201, "PUT");
    client.put("large", &large).expect(201, "a large PUT");
    assert_eq!(client.value("small").unwrap(), b"value");
    assert_eq!(client.value("large").unwrap(), large);
    assert_eq!(client.range("start=a").len(), 2);
    client.delete("small").expect(202, "DELETE");
    assert_eq!(client.value("small"), None);
    let mut status = Client::connect(address).unwrap();
    let status = status.request("GET", "/status", &[], None).expect(200, "/status").text();
    assert_eq!(json_string(&status, "runtime"), "epoll");

    Command::new("kill").arg(server.id().to_string()).status().unwrap();
    let mut said = String::new();
    server.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(server.wait().unwrap().success(), "{said}");
    assert_eq!(said.matches("io_uring is refused").count(), 1, "{said}");
}

#[test]
fn a_server_that_may_not_use_io_uring_serves_over_epoll_and_says_so_once() {
    serve_over_epoll("1s");
}

#[test]
fn without_io_uring_acknowledged_still_means_on_disk() {
    serve_over_epoll("always");
}

//! `/v0/entity`: the methods and their answers, and `ack` and `from` of a single node.

use crate::assert_usable_or_announced;
use koltso_testkit::client::Framing;
use koltso_testkit::{Client, Server, entity, volume};

// --- entity: the methods and their answers ---

#[test]
fn put_answers_201_and_get_returns_the_value() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.put("key", "value").expect(201, "PUT");
    let got = client.get("key").expect(200, "GET");
    assert_eq!(got.body, b"value");
    assert_eq!(got.framing, Framing::Length(5));
    assert_eq!(server.ask("GET", &entity("key")).body, b"value", "over another connection");
}

#[test]
fn get_of_a_key_that_never_was_is_404() {
    let server = Server::fresh("");
    server.ask("GET", &entity("nothing")).expect(404, "GET of an absent key");
}

#[test]
fn put_is_an_upsert() {
    let server = Server::fresh("");
    let mut client = server.connect();
    for value in ["first", "second, which is longer", "3"] {
        client.store("key", value);
        assert_eq!(client.value("key").as_deref(), Some(value.as_bytes()));
    }
}

#[test]
fn an_empty_value_is_a_value() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.put("length", "").expect(201, "PUT with Content-Length: 0");
    client.request("PUT", &entity("none"), &[], None).expect(201, "PUT without any body");
    client
        .send(b"PUT /v0/entity?id=chunked HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        .unwrap();
    client.read("PUT").expect(201, "PUT with an empty chunked body");
    for key in ["length", "none", "chunked"] {
        let got = client.get(key).expect(200, key);
        assert_eq!((got.framing, got.body.len()), (Framing::Length(0), 0), "{key}");
    }
}

#[test]
fn delete_is_202_also_where_the_key_never_was() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.delete("never").expect(202, "DELETE of a key that never was");
    client.store("key", "value");
    client.delete("key").expect(202, "DELETE");
    client.get("key").expect(404, "GET after DELETE");
    client.delete("key").expect(202, "DELETE of a deleted key");
    client.get("key").expect(404, "GET after two DELETE");
    client.store("key", "again");
    assert_eq!(client.value("key").as_deref(), Some(&b"again"[..]));
}

#[test]
fn head_answers_as_get_without_the_body() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("key", "twelve bytes");
    let (head, get) = (client.head("key"), client.get("key"));
    assert_eq!((head.status, get.status), (200, 200));
    assert_eq!(head.header("content-length"), Some("12"));
    assert_eq!(head.header("etag"), get.header("etag"));
    assert!(head.header("etag").is_some());
    client.head("absent").expect(404, "HEAD of an absent key");
    assert_eq!(client.value("key").as_deref(), Some(&b"twelve bytes"[..]), "the connection stays in step after HEAD");
    client.delete("key").expect(202, "DELETE");
    client.head("key").expect(404, "HEAD of a deleted key");
}

#[test]
fn a_write_that_was_acknowledged_is_seen_over_every_connection() {
    let server = Server::fresh("");
    let mut readers: Vec<Client> = (0..8).map(|_| server.connect()).collect();
    let mut writer = server.connect();
    for version in 0..volume(150, 1500) {
        let value = version.to_string();
        writer.store("shared", &value);
        for (index, reader) in readers.iter_mut().enumerate() {
            let seen = reader.value("shared").map(|bytes| String::from_utf8(bytes).unwrap());
            assert_eq!(seen.as_ref(), Some(&value), "reader {index}");
        }
    }
}

// --- ack and from on a single node ---

#[test]
fn a_single_node_takes_one_of_one_and_nothing_else() {
    let server = Server::fresh("");
    let mut client = server.connect();
    for query in ["ack=1&from=1", "from=1&ack=1", "ack=1", "from=1"] {
        let target = format!("{}&{query}", entity("key"));
        client.request("PUT", &target, &[], Some(b"v")).expect(201, query);
        client.request("GET", &target, &[], None).expect(200, query);
        client.request("HEAD", &target, &[], None).expect(200, query);
        client.request("DELETE", &target, &[], None).expect(202, query);
    }
    let wrong = [
        "ack=0",
        "ack=2",
        "from=0",
        "from=2",
        "ack=1&from=2",
        "ack=2&from=1",
        "ack=2&from=2",
        "ack=0&from=1",
        "ack=1&from=0",
        "ack=",
        "from=",
        "ack",
        "ack=x",
        "from=x",
        "ack=1.0",
        "ack=-1",
        "from=-1",
        "ack=1x",
        "ack=%201",
        "ack=1&from=",
        "ack=4294967297",
        "ack=18446744073709551617",
        "from=18446744073709551617",
        "ack=0x1",
    ];
    for query in wrong {
        let target = format!("{}&{query}", entity("refused"));
        for method in ["PUT", "GET", "HEAD", "DELETE"] {
            let mut client = server.connect();
            let body = (method == "PUT").then_some(&b"v"[..]);
            let response = client.request(method, &target, &[], body).expect(400, &format!("{method} with {query}"));
            assert_usable_or_announced(&mut client, &response, query);
        }
    }
    client.get("refused").expect(404, "nothing was written by what was refused");
}

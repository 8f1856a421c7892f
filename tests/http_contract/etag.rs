//! `ETag` and `If-None-Match`.

use koltso_testkit::{Server, entity};

#[test]
fn the_etag_is_strong_and_changes_with_every_version() {
    let mut server = Server::fresh("");
    let mut client = server.connect();
    let mut seen = Vec::new();
    for value in ["one", "two", "two", "one"] {
        client.store("key", value);
        let tag = client.get("key").header("etag").expect("200 carries an ETag").to_owned();
        assert!(tag.len() > 2 && tag.starts_with('"') && tag.ends_with('"'), "a strong tag, not {tag}");
        assert_eq!(client.get("key").header("etag"), Some(&*tag), "the same version has the same tag");
        assert_eq!(client.head("key").header("etag"), Some(&*tag), "HEAD has the tag of GET");
        assert!(!seen.contains(&tag), "{tag} was the tag of an earlier version");
        seen.push(tag);
    }
    client.delete("key").expect(202, "DELETE");
    assert_eq!(client.get("key").expect(404, "GET of a deleted key").header("etag"), None);
    client.store("key", "one");
    let tag = client.get("key").header("etag").unwrap().to_owned();
    assert!(!seen.contains(&tag), "a tag came back after DELETE");
    server.kill();
    server.start_again();
    assert_eq!(
        server.ask("GET", &entity("key")).header("etag"),
        Some(&*tag),
        "the tag of a version survives a restart"
    );
}

#[test]
fn if_none_match_gets_304() {
    let server = Server::fresh("");
    let mut client = server.connect();
    client.store("key", "value");
    let tag = client.get("key").header("etag").unwrap().to_owned();
    let matching = [
        tag.clone(),
        "*".to_owned(),
        format!("\"other\", {tag}"),
        format!("{tag}, \"other\""),
        format!("\"a\",{tag},\"b\""),
        format!("W/{tag}"),
    ];
    let different =
        ["\"other\"".to_owned(), "\"other\", \"another\"".to_owned(), "\"\"".to_owned(), format!("\"x{}", &tag[1..])];
    for method in ["GET", "HEAD"] {
        for condition in &matching {
            let answer = client.request(method, &entity("key"), &[("If-None-Match", condition)], None);
            let answer = answer.expect(304, &format!("{method}, If-None-Match: {condition}"));
            assert_eq!(answer.header("etag"), Some(&*tag), "304 carries the tag");
        }
        for condition in &different {
            let answer = client.request(method, &entity("key"), &[("If-None-Match", condition)], None);
            answer.expect(200, &format!("{method}, If-None-Match: {condition}"));
        }
        for condition in ["*", &tag] {
            let answer = client.request(method, &entity("absent"), &[("If-None-Match", condition)], None);
            answer.expect(404, &format!("{method} of an absent key, If-None-Match: {condition}"));
        }
    }
    client.store("key", "newer");
    let answer = client
        .request("GET", &entity("key"), &[("If-None-Match", &tag)], None)
        .expect(200, "the tag of an older version");
    assert_eq!(answer.body, b"newer");
    client.delete("key").expect(202, "DELETE");
    client.request("GET", &entity("key"), &[("If-None-Match", &tag)], None).expect(404, "the tag of a deleted key");
}

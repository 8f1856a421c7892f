//! The index: what runs and is kept, and captures in a browser.

use koltso_testkit::{Server, skip};

use crate::ask;

#[test]
fn the_index_says_when_and_of_what_captures_are_and_compares_two() {
    let server = Server::fresh("--threads 1");
    let id = |target: &str| ask(&server, target).expect(200, target).header("x-koltso-capture").unwrap().to_owned();
    let (base, other, new) = (id("profile?seconds=1&hz=99"), id("heap"), id("profile?seconds=1&hz=99"));
    let page = ask(&server, "").expect(200, "index").text();
    let row = |id: &str| {
        let at = format!("name=\"base\" value=\"{id}\"");
        page.lines().find(|line| line.contains(&at)).unwrap_or_else(|| panic!("no {at} in\n{page}")).to_owned()
    };
    for (id, kind) in [(&base, "CPU, 1."), (&new, "CPU, 1."), (&other, "Heap in use, now")] {
        let row = row(id);
        assert!(row.contains(kind) && row.contains(" UTC</td>") && row.contains("<td>20"), "{row}");
        for link in [format!("captures?id={id}\""), format!("captures?id={id}&amp;format=pprof")] {
            assert!(row.contains(&link), "{row}");
            ask(&server, &link.trim_end_matches('"').replace("&amp;", "&")).expect(200, &link);
        }
    }
    assert!(row(&base).contains("format=heatmap") && !row(&other).contains("format=heatmap"), "{page}");
    // The form, as a browser sends it: the two of a kind are chosen already.
    assert!(page.contains("<form action=\"diff\" method=\"get\">"), "{page}");
    let chosen = |name: &str, id: &str| {
        page.contains(&format!("name=\"{name}\" value=\"{id}\" aria-label=\"{name}: capture {id}\" checked>"))
    };
    assert!(chosen("base", &base) && chosen("new", &new), "{page}");
    ask(&server, &format!("diff?base={base}&new={new}")).expect(200, "compared");
    let refused = ask(&server, &format!("diff?base={base}&new={other}")).expect(400, "of two kinds");
    assert!(refused.text().contains("different kinds"), "{}", refused.text());
    // A capture that a browser opens is saved under a name.
    let proto = ask(&server, &format!("captures?id={new}&format=pprof")).expect(200, "profile.proto");
    assert_eq!(proto.header("content-disposition"), Some(&*format!("attachment; filename=\"koltso-cpu-{new}.pb.gz\"")));
    let list = ask(&server, "captures").expect(200, "list").text();
    assert!(list.lines().all(|line| line.split('\t').count() == 5 && line.ends_with(" UTC")), "{list}");
}

/// A server between a browser and `server` that adds a script to the end of each page; its address.
fn with_script(server: &Server, script: &'static str) -> std::net::SocketAddr {
    use std::io::{Read, Write};
    let (listener, to) = (std::net::TcpListener::bind("127.0.0.1:0").unwrap(), server.address());
    let address = listener.local_addr().unwrap();
    let pass = move |mut browser: std::net::TcpStream| -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            browser.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let mut server = std::net::TcpStream::connect(to)?;
        server.write_all(&head)?;
        // Answers of the control plane end with their connection.
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        let text = String::from_utf8_lossy(&answer);
        if let Some((lines, page)) = text.split_once("\r\n\r\n").filter(|(_, page)| page.contains("</body>")) {
            let page = page.replace("</body>", &format!("<script>{{{script}}}</script></body>"));
            let length = |line: &&str| !line.to_ascii_lowercase().starts_with("content-length");
            let lines: Vec<&str> = lines.split("\r\n").filter(length).collect();
            answer = format!("{}\r\nContent-Length: {}\r\n\r\n{page}", lines.join("\r\n"), page.len()).into_bytes();
        }
        browser.write_all(&answer)
    };
    std::thread::spawn(move || {
        for browser in listener.incoming().flatten() {
            // A browser that goes away is its own business.
            std::thread::spawn(move || drop(pass(browser)));
        }
    });
    address
}

/// In the index: asks for what is refused, then for a second of CPU, and notes what the page says
/// meanwhile. In the page that follows: leaves the notes in the document.
const CAPTURES: &str = "
    if (document.getElementById('progress')) {
      const link = document.querySelector('a[data-form=html]'), seen = [];
      link.href = 'flamegraph?event=cpu&seconds=0';
      link.click();
      let again = false;
      // (Timers stand still while a headless browser waits for an answer.)
      const note = () => {
        seen.push($('doing').textContent);
        sessionStorage.setItem('seen', JSON.stringify(seen));
        if (!again && $('progress').classList.contains('failed')) {
          again = true;
          link.href = 'flamegraph?event=cpu&seconds=1';
          link.dataset.seconds = 1;
          link.click();
        }
      };
      new MutationObserver(note).observe($('doing'), { childList: true });
    } else {
      const out = document.createElement('pre');
      out.id = 'results';
      out.textContent = location.search + sessionStorage.getItem('seen');
      document.body.append(out);
    }";

#[test]
fn a_capture_in_the_browser_counts_down_and_says_what_went_wrong() {
    let Some(browser) = skip::tool("chromium", "chromium") else { return };
    let (server, folder) = (Server::fresh("--threads 1"), tempfile::tempdir().unwrap());
    let address = with_script(&server, CAPTURES);
    let profile = format!("--user-data-dir={}", folder.path().join("browser").display());
    let output = std::process::Command::new("timeout")
        .args(["-k", "5", "120"])
        .arg(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--virtual-time-budget=15000", "--dump-dom", &profile])
        .arg(format!("http://{address}/debug/pprof/"))
        .output()
        .unwrap();
    let page = String::from_utf8_lossy(&output.stdout);
    let results = page.split_once("<pre id=\"results\">").map(|(_, rest)| rest.split_once("</pre>").unwrap().0);
    let results = results.unwrap_or_else(|| panic!("the capture is not shown: {page}"));
    assert!(results.starts_with("?id=") && page.contains("id=\"flame\""), "{results}");
    for said in ["The parameter seconds is a whole number from 1 to 300, not `0`.", "CPU, flame graph, 10 s: 1 s left"]
    {
        assert!(results.contains(said), "{said} is not in {results}");
    }
}

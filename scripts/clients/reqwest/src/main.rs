//! reqwest, with one client. `driver.py` describes the lines.
//!
//! (Its blocking client is no good here: a body of no known length that the server does not read to
//! its end hides the answer, now and then.)

use std::error::Error;
use std::io::{BufRead, stdin};
use std::time::Duration;

use reqwest::{Body, Client, Method};

async fn send(client: &Client, fields: &[&str]) -> Result<String, Box<dyn Error>> {
    let [method, url, _, framing, body, out, lines @ ..] = fields else {
        return Err("a line of fewer than six fields".into());
    };
    let mut request = client.request(Method::from_bytes(method.as_bytes())?, *url);
    if *body != "-" {
        let content = std::fs::read(body)?;
        request = request.body(if *framing == "chunked" {
            let pieces: Vec<_> = content.chunks(100_000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
            Body::wrap_stream(futures_util::stream::iter(pieces))
        } else {
            Body::from(content)
        });
    }
    for (name, value) in lines.iter().filter_map(|line| line.split_once(": ")) {
        request = request.header(name, value);
    }
    let response = request.send().await?;
    let mut text = response.status().as_u16().to_string();
    for (name, value) in response.headers() {
        text.push_str(&format!("\t{name}: {}", value.to_str()?));
    }
    std::fs::write(out, response.bytes().await?)?;
    Ok(text)
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text.replace(['\t', '\n'], " ")
}

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::builder().no_proxy().timeout(Duration::from_secs(60)).build()?;
    for line in stdin().lock().lines() {
        let line = line?;
        let fields: Vec<&str> = line.split('\t').collect();
        let answer = runtime.block_on(send(&client, &fields));
        println!("{}", answer.unwrap_or_else(|error| format!("FAILED\t{}", with_causes(&*error))));
    }
    Ok(())
}

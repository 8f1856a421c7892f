//! The pages as files: valid data, no name that can break out of its place, no network, and their
//! size.

mod common;

use koltso_profiling::page;
use serde_json::Value;

fn data(html: &str) -> Value {
    let (_, tail) = html.split_once("<script type=\"application/json\" id=\"data\">").expect("the data");
    let (json, _) = tail.split_once("</script>").expect("its end");
    assert!(!json.contains(['<', '>', '&']), "names are escaped");
    serde_json::from_str(json).expect("JSON")
}

#[test]
fn the_data_names_types_frames_and_sides() {
    let json = data(&page::flamegraph(&common::small(), "small"));
    assert_eq!(
        json["types"],
        serde_json::json!([["samples", "count", 2, 0], ["cpu", "nanoseconds", 2 * common::PERIOD, 0]])
    );
    assert_eq!((json["kind"].as_str(), json["type"].as_u64()), (Some("flame"), Some(1)));
    let frames: Vec<&str> = json["frames"].as_array().expect("frames").iter().filter_map(Value::as_str).collect();
    for name in
        ["umain", "ktcp_sendmsg", "iparse", "s<core::iter::Map as core::iter::Iterator>::next", "llock:segments"]
    {
        assert!(frames.contains(&name), "{name} in {frames:?}");
    }
    assert_eq!(json["threads"], serde_json::json!(["koltso-core-0", "koltso-core-1", "koltso-core-2"]));
    assert_eq!(json["sides"][0]["notes"][0], "cpu over 10.0 s, 100 samples");
    let heap = data(&page::flamegraph(&common::heap(), "heap"));
    assert_eq!(heap["types"].as_array().expect("types").len(), 4);
    assert_eq!(data(&page::diff(&common::small(), &common::heap(), ""))["sides"].as_array().map(Vec::len), Some(2));
}

#[test]
fn hostile_names_stay_inside_their_strings() {
    let hostile = common::hostile();
    for html in [
        page::flamegraph(&hostile, common::HOSTILE[0]),
        page::heatmap(&hostile, "{{data}}"),
        page::diff(&hostile, &hostile, common::HOSTILE[1]),
    ] {
        data(&html);
        assert_eq!(html.matches("<script").count(), 2);
        assert_eq!(html.matches("</script").count(), 2);
        assert!(!html.contains("<img") && !html.contains("onerror=alert(1)>"));
    }
    assert!(page::heatmap(&hostile, "{{data}}").contains("<h1>{{data}}</h1>"), "a title is not a template");
}

#[test]
fn pages_need_no_network() {
    let html = page::heatmap(&common::small(), "small");
    assert!(html.contains("default-src 'none'"));
    for word in ["http://", "https://", " src=", "fetch(", "import ", "url("] {
        assert!(!html.contains(word), "{word}");
    }
}

#[test]
fn seventeen_thousand_samples_of_depth_thirty_are_small() {
    let capture = common::large(17_000, 60);
    let (flame, heat) = (page::flamegraph(&capture, "large"), page::heatmap(&capture, "large"));
    let nodes = data(&flame)["tree"].as_str().map_or(0, str::len);
    println!(
        "flame graph {} bytes, tree {nodes}; heatmap {}; {} stacks",
        flame.len(),
        heat.len(),
        capture.stacks().len()
    );
    assert!(capture.stacks().len() > 5000, "the generator makes a bushy tree");
    assert!(flame.len() <= 400_000 && heat.len() <= 400_000);
    assert_eq!(flame, page::flamegraph(&common::large(17_000, 60), "large"), "the same every time");
}

#[test]
fn nothing_is_a_page_too() {
    for html in [
        page::flamegraph(&common::cpu(), ""),
        page::heatmap(&common::cpu(), ""),
        page::diff(&common::cpu(), &common::small(), ""),
    ] {
        data(&html);
    }
}

#[test]
fn a_tree_beyond_its_bound_is_cut_and_says_so() {
    let mut capture = common::cpu();
    let tail = ";recurse".repeat(191);
    let stacks = page::NODES_MAX as u64 / 192 + 3;
    for n in 0..stacks {
        common::add(&mut capture, 0, n, &format!("root_{n}{tail}"), [1, common::PERIOD, 0, 0]);
    }
    let json = data(&page::flamegraph(&capture, "deep"));
    let notes = json["sides"][0]["notes"].to_string();
    assert!(notes.contains("3 stacks cut: the page has room for 1048576 nodes"), "{notes}");
}

//! The pages in a real browser: each test opens one in headless Chromium, with a script of
//! `tests/browser/` at its end that uses the page as a person would and leaves in the document what
//! failed.
//!
//! `KOLTSO_SCREENSHOTS=FOLDER cargo test … pictures -- --ignored` draws all pages into a folder, in
//! both themes and in the widths of a desktop and a telephone.

mod common;

use koltso_profiling::page;
use koltso_testkit::{Remedy, skip};
use std::path::Path;
use std::process::Command;

const HELPERS: &str = include_str!("browser/common.js");

/// The browser's name; `None`, which is recorded as skipped, if there is none.
fn browser() -> Option<&'static str> {
    let found = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()));
    if found.is_none() {
        skip("there is no Chromium", Remedy::Package("chromium"));
    }
    found
}

fn chromium(name: &str, folder: &Path, options: &[&str], html: &str) -> String {
    let file = folder.join("page.html");
    std::fs::write(&file, html).expect("a file");
    let profile = format!("--user-data-dir={}", folder.join("profile").display());
    let output = Command::new("timeout")
        .args(["-k", "5", "90", name, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--hide-scrollbars", "--no-first-run", "--disable-extensions", "--virtual-time-budget=4000", &profile])
        .args(options)
        .arg(format!("file://{}", file.display()))
        .output()
        .expect("timeout of coreutils");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn with_script(html: &str, script: &str) -> String {
    html.replace("</body>", &format!("<script>{HELPERS}\n{{{script}}}</script></body>"))
}

fn element<'a>(dom: &'a str, id: &str) -> Option<&'a str> {
    Some(dom.split_once(&format!("<pre id=\"{id}\">"))?.1.split_once("</pre>")?.0)
}

fn run(html: &str, script: &str) {
    let Some(name) = browser() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let dom = chromium(name, folder.path(), &["--window-size=1280,800", "--dump-dom"], &with_script(html, script));
    if let Some(times) = element(&dom, "times") {
        println!("{times}");
    }
    let results = element(&dom, "results").unwrap_or("the script did not come to its end");
    assert!(results.starts_with("passed "), "{results}");
    println!("{results} checks");
}

#[test]
fn flame_graph_zooms_searches_inverts_and_splits_by_thread() {
    let mut capture = common::small();
    capture.lost = 7;
    run(&page::flamegraph(&capture, "small <cpu>"), include_str!("browser/flame.js"));
}

#[test]
fn heatmap_selects_spans_and_compares_two() {
    run(&page::heatmap(&common::small(), "small"), include_str!("browser/heat.js"));
}

#[test]
fn long_captures_have_coarser_cells() {
    let script = "
        check('five minutes', [app.heat.step, app.heat.cell, app.heat.columns], [2, 40, 150]);
        check('scales', [...app.$('scale').options].map(option => Number(option.value)), [1, 2, 5, 10, 30, 60, 300]);
        const sum = () => Math.round(app.heat.values.reduce((a, b) => a + b, 0) / 1001001);
        check('all samples', sum(), 3000);
        app.$('scale').value = '1';
        app.$('scale').onchange();
        check('finer', [app.heat.columns, sum()], [300, 3000]);
        app.heat.select([0, 0], [300 * 50 - 1, 300 * 50 - 1], false);
        check('all time', Math.round(total('all') / 1001001), 3000);
        report();";
    run(&page::heatmap(&common::large(3000, 300), "long"), script);
}

#[test]
fn nothing_is_shown_as_nothing() {
    let script = "check('says so', [app.$('empty').hidden, app.flame.graph.total[0][0]], [false, 0]); app.search('x'); report();";
    run(&page::heatmap(&common::cpu(), "none"), script);
    run(&page::diff(&common::cpu(), &common::cpu(), "none"), script);
}

#[test]
fn difference_is_of_shares() {
    run(&page::diff(&common::small(), &more_compaction(), "difference"), include_str!("browser/diff.js"));
}

#[test]
fn frames_of_the_runtime_are_folded_until_somebody_asks_for_them() {
    let script = include_str!("browser/folded.js");
    run(&page::flamegraph(&common::served(), "served"), script);
    run(&page::heatmap(&common::served(), "served"), script);
    run(&page::diff(&common::served(), &common::served(), "served"), script);
}

#[test]
fn a_difference_of_very_different_sample_counts_says_so() {
    let says = |is_said| {
        format!(
            "check('said', /samples and the new one .*say nothing/.test(app.$('notes').textContent), {is_said}); report();"
        )
    };
    run(&page::diff(&common::small(), &more_compaction(), "100 and 300"), &says(true));
    run(&page::diff(&common::small(), &common::small(), "100 and 100"), &says(false));
}

#[test]
fn hostile_names_are_only_text() {
    run(&page::flamegraph(&common::hostile(), common::HOSTILE[0]), include_str!("browser/hostile.js"));
}

#[test]
fn seventeen_thousand_samples_are_smooth() {
    run(&page::flamegraph(&common::large(17_000, 60), "large"), include_str!("browser/large.js"));
}

#[test]
#[ignore = "draws pictures that people look at, into the folder that KOLTSO_SCREENSHOTS names"]
fn pictures() {
    let target = std::env::var_os("KOLTSO_SCREENSHOTS").expect("KOLTSO_SCREENSHOTS names a folder");
    let Some(name) = browser() else { return };
    let large = common::large(30_000, 60);
    let pages = [
        (
            "flame",
            page::flamegraph(&large, "koltso-1: CPU under PUT load"),
            "app.search('probe_1'); clickOn(app.flame.label(1));",
        ),
        (
            "heat",
            page::heatmap(&large, "koltso-1: CPU under PUT load"),
            "app.search('probe_1[0-9]'); app.heat.select([500, 500], [760, 760], false);",
        ),
        (
            "heat2",
            page::heatmap(&common::small(), "small"),
            "app.heat.select([0, 0], [99, 99], false); app.heat.select([400, 400], [499, 499], true);",
        ),
        (
            "heap",
            page::flamegraph(&common::heap(), "Live heap"),
            "toggle('inverted'); app.$('type').value = '1'; app.$('type').onchange();",
        ),
        ("folded", page::flamegraph(&common::served(), "koltso-1: CPU"), ""),
        ("diff", page::diff(&common::small(), &more_compaction(), "Before and after compaction"), ""),
        (
            "small",
            page::flamegraph(&common::small(), "small"),
            "const b = boxOf('serve'); pointer(app.$('flame'), 'pointermove', b.x + 5, b.y);",
        ),
    ];
    for (kind, html, script) in pages {
        for (theme, size) in [("light", "1280,800"), ("dark", "1280,800"), ("light", "390,844"), ("dark", "390,844")] {
            let folder = tempfile::tempdir().expect("a folder");
            let file = Path::new(&target).join(format!("{kind}-{theme}-{}.png", size.replace(',', "x")));
            // Headless windows are at least about 500 wide, so a telephone is a frame in one:
            // scripts run inside it.
            let script = format!("app.theme('{theme}'); {script}");
            std::fs::write(folder.path().join("inner.html"), with_script(&html, &script)).expect("a file");
            let (width, height) = size.split_once(',').expect("two numbers");
            let outer = format!(
                "<body style=\"margin:0\"><iframe src=\"inner.html\" style=\"border:0;width:{width}px;height:{height}px\"></iframe>"
            );
            let shot = format!("--screenshot={}", file.display());
            chromium(name, folder.path(), &[&format!("--window-size={size}"), &shot], &outer);
            assert!(std::fs::metadata(&file).is_ok_and(|file| file.len() > 5000));
        }
    }
}

fn more_compaction() -> koltso_profiling::capture::Capture {
    let mut capture = common::small();
    for n in 0..200 {
        common::add(&mut capture, 1, n * 50, "main;run;compact;copy;memcpy", [1, common::PERIOD, 0, 0]);
    }
    capture
}

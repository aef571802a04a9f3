//! Finds kvc through pkg-config: the package `kvc`, or `kvc-static` with the feature `static`. The
//! usual variables apply: PKG_CONFIG names another program, PKG_CONFIG_PATH another place.
use pkg_config::{Config, Library};
use std::env;
use std::process::exit;

const OLDEST: &str = "0.2";
const TOO_NEW: &str = "0.3"; // before 1.0 a minor version may break the ABI

fn link(library: &Library) {
    for folder in &library.link_paths {
        println!("cargo:rustc-link-search=native={}", folder.display());
    }
    // The archive lies beside libkvc.so, which the linker would prefer: say which one is meant.
    for archive in &library.link_files {
        let folder = archive.parent().expect("pkg-config names files by path");
        println!("cargo:rustc-link-search=native={}", folder.display());
        println!("cargo:rustc-link-lib=static=kvc");
        println!("cargo:rerun-if-changed={}", archive.display());
    }
    for name in &library.libs {
        println!("cargo:rustc-link-lib={name}");
    }
}

fn main() {
    if env::var_os("DOCS_RS").is_some() {
        return; // documentation links nothing
    }
    let package = if env::var_os("CARGO_FEATURE_STATIC").is_some() {
        "kvc-static"
    } else {
        "kvc"
    };
    let found = Config::new()
        .range_version(OLDEST..TOO_NEW)
        .cargo_metadata(false)
        .env_metadata(true)
        .probe(package);
    match found {
        Ok(library) => link(&library),
        Err(why) => {
            // What to do comes last: cargo prints dozens of lines before it.
            eprintln!("{}\n", why.to_string().trim_end());
            eprintln!("kvc-sys: pkg-config finds no {package} from {OLDEST} to below {TOO_NEW}.");
            eprintln!("Install kvc, and set PKG_CONFIG_PATH to <prefix>/lib/pkgconfig.");
            exit(1);
        }
    }
}

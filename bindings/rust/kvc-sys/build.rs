//! Finds kvc through pkg-config: the package `kvc`, or `kvc-static` with the feature `static`. The
//! usual variables apply: PKG_CONFIG names another program, PKG_CONFIG_PATH another place.
use std::env;
use std::path::Path;
use std::process::{exit, Command};

const OLDEST: &str = "0.2";
const TOO_NEW: &str = "0.3"; // before 1.0 a minor version may break the ABI

fn pkg_config(package: &str) -> Result<String, String> {
    let program = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".to_string());
    let range = [
        format!("{package} >= {OLDEST}"),
        format!("{package} < {TOO_NEW}"),
    ];
    let output = Command::new(&program)
        .args(["--print-errors", "--libs"])
        .args(range)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    String::from_utf8(output.stdout).map_err(|error| error.to_string())
}

fn link(flag: &str) {
    let path = Path::new(flag);
    if let Some(folder) = flag.strip_prefix("-L") {
        println!("cargo:rustc-link-search=native={folder}");
    } else if let Some(library) = flag.strip_prefix("-l") {
        println!("cargo:rustc-link-lib={library}");
    } else if path.extension().map_or(false, |extension| extension == "a") {
        println!(
            "cargo:rustc-link-search=native={}",
            path.parent().unwrap().display()
        );
        println!("cargo:rustc-link-lib=static=kvc");
        println!("cargo:rerun-if-changed={flag}");
    }
}

fn main() {
    for variable in [
        "PKG_CONFIG",
        "PKG_CONFIG_PATH",
        "PKG_CONFIG_LIBDIR",
        "PKG_CONFIG_SYSROOT_DIR",
    ] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    if env::var_os("DOCS_RS").is_some() {
        return; // documentation links nothing
    }
    let package = if env::var_os("CARGO_FEATURE_STATIC").is_some() {
        "kvc-static"
    } else {
        "kvc"
    };
    match pkg_config(package) {
        Ok(flags) => flags.split_whitespace().for_each(link),
        Err(why) => {
            eprintln!("kvc-sys: {package} was not found.");
            eprintln!("Set PKG_CONFIG_PATH to <prefix>/lib/pkgconfig.\n{why}");
            exit(1);
        }
    }
}

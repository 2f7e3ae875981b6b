//! Stamps both programs with a hash of the workspace's sources (`smartstack_common::BUILD`), so that a test can tell
//! a program left over from another build. A hash, not a time: the same sources give the same stamp.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::path::{Path, PathBuf};

fn main() {
    // Asked when it runs: a path compiled in would name the former folder after the build folder was moved or copied.
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo names the package's folder");
    let root = Path::new(&manifest).join("..");
    let mut files = vec![root.join("Cargo.lock")];
    for folder in ["common/src", "nerve/src", "synapse/src", "templates"] {
        let folder = root.join(folder);
        println!("cargo::rerun-if-changed={}", folder.display());
        collect(&folder, &mut files);
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        if let Ok(bytes) = std::fs::read(&file) {
            let name = file.strip_prefix(&root).unwrap_or(&file);
            hasher.write(name.to_string_lossy().as_bytes());
            hasher.write(&bytes);
        }
    }
    println!(
        "cargo::rustc-env=SMARTSTACK_BUILD={:08x}",
        hasher.finish() as u32
    );
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}

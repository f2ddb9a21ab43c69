// Counts the words on standard input: the most frequent first, ties in order of the words.
use std::collections::BTreeMap;
use std::io::{stdin, Read};

fn main() {
    let mut text = String::new();
    stdin().read_to_string(&mut text).expect("standard input is text");
    let mut counts = BTreeMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word).or_insert(0) += 1;
    }
    let mut sorted: Vec<_> = counts.into_iter().collect();
    sorted.sort_by_key(|&(_, count)| -count);
    for (word, count) in sorted {
        println!("{count} {word}");
    }
}

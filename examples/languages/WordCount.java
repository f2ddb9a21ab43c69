// Counts the words on standard input: the most frequent first, ties in order of the words.
import java.util.Comparator;
import java.util.Map;
import java.util.Scanner;
import java.util.TreeMap;

public class WordCount {
    public static void main(String[] args) {
        Map<String, Integer> counts = new TreeMap<>();
        Scanner input = new Scanner(System.in);
        while (input.hasNext()) counts.merge(input.next(), 1, Integer::sum);
        counts.entrySet().stream()
            .sorted(Map.Entry.comparingByValue(Comparator.reverseOrder()))
            .forEach(entry -> System.out.println(entry.getValue() + " " + entry.getKey()));
    }
}

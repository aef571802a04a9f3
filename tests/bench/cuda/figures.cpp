#include "tests/bench/cuda/figures.hpp"

#include <algorithm>
#include <cstdio>

namespace bench_cuda {

Options options;

namespace {

struct Row {
  Figure figure;
  std::vector<double> values, microseconds;
  Error error;

  /// NaN is wrong, too.
  bool is_right() const { return error.is <= error.at_most; }
};
std::vector<Row> rows;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

const char* verdict(const Row& row) {
  if (!row.is_right()) return "WRONG";
  if (options.tiny) return "";
  const Figure& f = row.figure;
  const double value = median(row.values);
  const auto reaches = [&](double target) {
    return target != 0 && (f.better == Better::higher ? value >= target : value <= target);
  };
  if (reaches(f.go_for)) return "go";
  if (reaches(f.must)) return "must";
  return f.must != 0 ? "missed" : "";
}

void print_line(const Row& row) {
  const auto [least, most] = std::minmax_element(row.values.begin(), row.values.end());
  std::printf("%s\t%s\t%.6g\t%.6g\t%.6g\t%.6g\t%.3g\t%s\n", row.figure.name.c_str(),
              row.figure.unit, median(row.values), *least, *most, median(row.microseconds),
              row.error.is, verdict(row));
  std::fflush(stdout);
}

}  // namespace

void report(const Figure& figure, std::vector<double> values, std::vector<double> microseconds,
            Error error) {
  rows.push_back({figure, std::move(values), std::move(microseconds), error});
  if (options.as_lines) {
    print_line(rows.back());
  } else {
    std::fprintf(stderr, "  %s: %.4g %s\n", figure.name.c_str(), median(rows.back().values),
                 figure.unit);
  }
}

bool all_right() {
  return !rows.empty() &&
         std::all_of(rows.begin(), rows.end(), [](const Row& row) { return row.is_right(); });
}

void print_table() {
  if (options.as_lines) return;
  std::printf(
      "| figure | unit | median | range | runs | time | error | must | go for | reached |\n"
      "|---|---|---|---|---|---|---|---|---|---|\n");
  for (const Row& row : rows) {
    const auto [least, most] = std::minmax_element(row.values.begin(), row.values.end());
    std::printf("| %s | %s | %.3g | %.3g – %.3g | %zu | %.4g µs | %.1g | %g | %g | %s |\n",
                row.figure.name.c_str(), row.figure.unit, median(row.values), *least, *most,
                row.values.size(), median(row.microseconds), row.error.is, row.figure.must,
                row.figure.go_for, verdict(row));
  }
}

}  // namespace bench_cuda

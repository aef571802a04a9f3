// What would take a program years: a slot of the handle table lives all its lives.
#include "capi/src/handle_table.hpp"

#include <gtest/gtest.h>

namespace {

using namespace kvc::capi;
using kvc::Status;

#ifdef KVC_SANITIZED
constexpr int64_t lives = 100000;
#else
constexpr int64_t lives = int64_t{1} << 27;  // all of them
#endif

// The last handle of a slot stays dead: the slot is retired rather than begun anew.
TEST(HandleTable, ASlotThatIsUsedUpIsRetired) {
  int object = 0;
  void* first = nullptr;
  void* last = nullptr;
  for (int64_t life = 0; life < lives; ++life) {
    void* const handle = handles::add(Kind::device, &object, {});
    void* found = nullptr;
    const bool well = handle != nullptr && handle != first && handle != last &&
                      handles::remove(handle, Kind::device, &found) == Status::ok;
    ASSERT_TRUE(well && found == &object) << "life " << life;
    if (life == 0) first = handle;
    last = handle;
  }
  void* const next = handles::add(Kind::cache, &object, {});
  ASSERT_NE(next, nullptr);
  void* found = nullptr;
  for (void* const dead : {first, last}) {
    EXPECT_NE(dead, next);
    EXPECT_EQ(handles::enter(dead, Kind::device, Access::shared, &found), Status::handle);
    EXPECT_EQ(handles::enter(dead, Kind::cache, Access::shared, &found), Status::handle);
  }
  EXPECT_EQ(handles::remove(next, Kind::cache, &found), Status::ok);
}

}  // namespace
